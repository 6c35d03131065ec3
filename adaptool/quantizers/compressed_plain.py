"""compressed-tensors' formats with one element a code: float-quantized and int-quantized.

Both lie and decode alike; `compressed_float` and `compressed_int` are the schemes. Source:
compressed-tensors 0.20, `naive_quantized/base.py`, `lifecycle/forward_helpers.py` (_dequantize).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from adaptool.model.quantizer import Packed, Parts
from adaptool.quantizers.compressed_groups import activations, group_for, modules
from adaptool.quantizers.scale_grid import grid_of, rows_of_scales, scaled
from adaptool.quantizers.stored_parts import check_axes, check_dtype, check_shape
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

_ZEROS = ("I8", "I16", "I32", "F8_E4M3", "F16", "BF16", "F32")


def packed_plain(
    tensors: Mapping[str, TensorRef], settings: Mapping[str, Any], wanted: str, scheme: str
) -> Iterator[Packed]:
    """Every module in the format `wanted`; InputError where its parts contradict."""
    for module, codes, scales in modules(tensors, settings, wanted):
        check_axes(codes, 2)
        roles = {"weight": codes, "weight_scale": scales}
        zeros = tensors.get(f"{module}.weight_zero_point")
        if zeros is not None:
            check_dtype(zeros, *_ZEROS)
            check_shape(zeros, scales.shape, f"{scales.name} of shape {list(scales.shape)}")
            roles["weight_zero_point"] = zeros
        rows, columns = codes.shape
        suits = [group["symmetric"] or zeros is not None for group in settings["groups"]]
        _, grid = group_for(settings, codes, scales, (rows, columns), suits)
        yield Packed(
            name=codes.name,
            scheme=scheme,
            roles={**roles, **activations(module, tensors)},
            shape=(rows, columns),
            dtype=scales.dtype,
            settings={"grid": grid.as_json()},
        )


def decode_plain(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop) in the dtype of the scales, which is what the library computes in."""
    width = packed.columns
    codes = parts.span("weight", start * width, stop * width).reshape(-1, width)
    scales = rows_of_scales(parts, packed, "weight_scale", start, stop)
    zeros = None
    if "weight_zero_point" in packed.roles:
        zeros = rows_of_scales(parts, packed, "weight_zero_point", start, stop).to(scales.dtype)
    return scaled(codes.to(scales.dtype), scales, grid_of(packed).width, zeros)
