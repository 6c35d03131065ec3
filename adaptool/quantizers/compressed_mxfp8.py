"""compressed-tensors `mxfp8-quantized`: 8-bit floats in groups of 32, one exponent each.

For a module X of `out` x `in`:

    X.weight        F8_E4M3   [out, in]
    X.weight_scale  U8        [out, in / 32]   exponents

    W[o, i] = q[o, i] * 2 ** (s[o, i // 32] - 127)      in bfloat16

Source: compressed-tensors 0.20, `compressors/mxfp8/base.py`, `compressors/mx_utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import DTYPES
from adaptool.findings import Code
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.compressed_groups import (
    LIBRARY,
    MXFP8,
    SKIPPED,
    activations,
    modules,
    settings_of,
)
from adaptool.quantizers.microscaling import e8m0
from adaptool.quantizers.scale_grid import Grid, rows_of_scales, scaled
from adaptool.quantizers.skip_lists import extended
from adaptool.quantizers.stored_parts import check_axes, check_shape, refuse
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SCHEME = Scheme(title="compressed-tensors MXFP8", library=LIBRARY, skip_list=SKIPPED)
GROUP = 32


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config's groups in this format; None where it has none."""
    return settings_of(config, MXFP8)


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every module in this format; InputError where its parts contradict."""
    for module, codes, scales in modules(tensors, settings, MXFP8):
        check_axes(codes, 2)
        rows, columns = codes.shape
        if columns % GROUP:
            message = f"has {columns} inputs, which groups of {GROUP} do not divide"
            refuse(codes, message, code=Code.SHAPE_MISMATCH, field="group_size")
        reason = f"a weight of {rows} x {columns} in groups of {GROUP}"
        check_shape(scales, (rows, columns // GROUP), reason)
        roles = {"weight": codes, "weight_scale": scales}
        yield Packed(
            name=codes.name,
            scheme="compressed_mxfp8",
            roles={**roles, **activations(module, tensors)},
            shape=(rows, columns),
            dtype=DTYPES["BF16"],
            settings={"grid": Grid(rows, columns, 1, GROUP).as_json()},
        )


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): they and their scales are read, and no others."""
    import torch

    width = packed.columns
    codes = parts.span("weight", start * width, stop * width).reshape(-1, width)
    scales = e8m0(rows_of_scales(parts, packed, "weight_scale", start, stop))
    return scaled(codes.to(torch.bfloat16), scales.to(torch.bfloat16), GROUP)


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` added to the modules that no group applies to."""
    return extended(config, SKIPPED, modules)
