"""ModelOpt NVFP4: 4-bit floats in groups of 16, two levels of scales to multiply by.

For a module X of `out` x `in`:

    X.weight          U8        [out, in / 2]    codes, two a byte, the first in the low half
    X.weight_scale    F8_E4M3   [out, in / 16]
    X.weight_scale_2  F32       [] or [1]
    X.input_scale     F32       of activations

    W[o, i] = e2m1(code[o, i]) * (s[o, i // 16] * s2)      in float32, rounded to the model's dtype

Source: ModelOpt 0.47, `torch/quantization/qtensor/nvfp4_tensor.py` (NVFP4QTensor.dequantize).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import DTYPES
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.compressed_groups import check_four_bits
from adaptool.quantizers.microscaling import e2m1
from adaptool.quantizers.model_dtype import model_dtype
from adaptool.quantizers.modelopt_config import SKIPPED, algorithm, check_no_rotation, orphan
from adaptool.quantizers.scale_grid import Grid, rows_of_scales, scaled
from adaptool.quantizers.skip_lists import extended
from adaptool.quantizers.stored_parts import check_dtype, check_elements, require
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SCHEME = Scheme(title="ModelOpt NVFP4", library="nvidia-modelopt", skip_list=SKIPPED)
ALGORITHMS = frozenset({"NVFP4", "W4A16_NVFP4"})
GROUP = 16


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The model's dtype; None where the config says another method or algorithm."""
    return {"dtype": model_dtype(config).name} if algorithm(config) in ALGORITHMS else None


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every 4-bit weight with its scales; InputError where one of the three is missing."""
    for name, ref in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "weight" and ref.dtype.name == "U8":
            yield _packed(module, ref, tensors, settings["dtype"])
        else:
            orphan(ref, tensors, "U8")


def _packed(module: str, codes: TensorRef, tensors: Mapping[str, TensorRef], dtype: str) -> Packed:
    scales = require(tensors, f"{module}.weight_scale", codes)
    outer = require(tensors, f"{module}.weight_scale_2", codes)
    check_no_rotation(module, tensors)
    check_dtype(scales, "F8_E4M3")
    check_dtype(outer, "F32")
    check_elements(outer, 1, "a scale for all")
    shape = check_four_bits(codes, scales, GROUP)
    roles = {"weight": codes, "weight_scale": scales, "weight_scale_2": outer}
    if f"{module}.input_scale" in tensors:
        roles["input_scale"] = tensors[f"{module}.input_scale"]
    grid = Grid(*shape, 1, GROUP).as_json()
    return Packed(codes.name, "modelopt_nvfp4", roles, shape, DTYPES[dtype], {"grid": grid})


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): they and their scales are read, and no others."""
    import torch

    width = packed.columns // 2
    codes = parts.span("weight", start * width, stop * width).reshape(-1, width)
    scales = rows_of_scales(parts, packed, "weight_scale", start, stop).float()
    scales = scales * parts.whole("weight_scale_2").reshape(1, 1)
    dtype: torch.dtype = getattr(torch, str(packed.dtype.torch))
    return scaled(e2m1(codes, torch.float32), scales, GROUP).to(dtype)


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` added to the list, which vLLM reads as parts of names."""
    return extended(config, SKIPPED, modules)
