"""compressed-tensors `nvfp4-pack-quantized`: 4-bit floats in groups of 16, two levels of scales.

For a module X of `out` x `in`:

    X.weight_packed        U8        [out, in / 2]    codes, two a byte, the first in the low half
    X.weight_scale         F8_E4M3   [out, in / 16]
    X.weight_global_scale  F32       [1]              to divide by
    X.input_global_scale   F32       [1]              of activations

    W[o, i] = e2m1(code[o, i]) * (s[o, i // 16] / global)      in float32, rounded to bfloat16

A global scale without an axis makes the quotient bfloat16, by torch's rules. Source:
compressed-tensors 0.20, `compressors/nvfp4/`, `quantization/lifecycle/forward_helpers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import DTYPES
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.compressed_groups import (
    LIBRARY,
    NVFP4,
    SKIPPED,
    activations,
    check_four_bits,
    modules,
    settings_of,
)
from adaptool.quantizers.microscaling import e2m1
from adaptool.quantizers.scale_grid import Grid, rows_of_scales, scaled
from adaptool.quantizers.skip_lists import extended
from adaptool.quantizers.stored_parts import check_dtype, check_elements, require
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SCHEME = Scheme(title="compressed-tensors NVFP4", library=LIBRARY, skip_list=SKIPPED)
GROUP = 16


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config's groups in this format; None where it has none."""
    return settings_of(config, NVFP4)


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every module in this format; InputError where its parts contradict."""
    for module, codes, scales in modules(tensors, settings, NVFP4):
        outer = require(tensors, f"{module}.weight_global_scale", codes)
        check_dtype(outer, "F32")
        check_elements(outer, 1, "a scale for all")
        shape = check_four_bits(codes, scales, GROUP)
        roles = {"weight_packed": codes, "weight_scale": scales, "weight_global_scale": outer}
        yield Packed(
            name=f"{module}.weight",
            scheme="compressed_nvfp4",
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
    scales = rows_of_scales(parts, packed, "weight_scale", start, stop).to(torch.bfloat16)
    scales = scales / parts.whole("weight_global_scale")
    return scaled(e2m1(codes, scales.dtype), scales, GROUP).to(torch.bfloat16)


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` added to the modules that no group applies to."""
    return extended(config, SKIPPED, modules)
