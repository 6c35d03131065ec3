"""compressed-tensors `mxfp4-pack-quantized`: 4-bit floats in groups of 32, one exponent each.

For a module X of `out` x `in`:

    X.weight_packed  U8   [out, in / 2]    codes, two a byte, the first in the low half
    X.weight_scale   U8   [out, in / 32]   exponents

    W[o, i] = e2m1(code[o, i]) * 2 ** (s[o, i // 32] - 127)      in bfloat16

Source: compressed-tensors 0.20, `compressors/mxfp4/base.py`, `compressors/mx_utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import DTYPES
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.compressed_groups import (
    LIBRARY,
    MXFP4,
    SKIPPED,
    activations,
    check_four_bits,
    modules,
    settings_of,
)
from adaptool.quantizers.microscaling import e2m1, e8m0
from adaptool.quantizers.scale_grid import Grid, rows_of_scales, scaled
from adaptool.quantizers.skip_lists import extended
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SCHEME = Scheme(title="compressed-tensors MXFP4", library=LIBRARY, skip_list=SKIPPED)
GROUP = 32


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config's groups in this format; None where it has none."""
    return settings_of(config, MXFP4)


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every module in this format; InputError where its parts contradict."""
    for module, codes, scales in modules(tensors, settings, MXFP4):
        shape = check_four_bits(codes, scales, GROUP)
        roles = {"weight_packed": codes, "weight_scale": scales}
        yield Packed(
            name=f"{module}.weight",
            scheme="compressed_mxfp4",
            roles={**roles, **activations(module, tensors)},
            shape=shape,
            dtype=DTYPES["BF16"],
            settings={"grid": Grid(*shape, 1, GROUP).as_json()},
        )


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): they and their scales are read, and no others."""
    import torch

    width = packed.columns // 2
    codes = parts.span("weight_packed", start * width, stop * width).reshape(-1, width)
    scales = e8m0(rows_of_scales(parts, packed, "weight_scale", start, stop))
    return scaled(e2m1(codes, torch.bfloat16), scales.to(torch.bfloat16), GROUP)


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` added to the modules that no group applies to."""
    return extended(config, SKIPPED, modules)
