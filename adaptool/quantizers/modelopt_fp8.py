"""ModelOpt FP8: 8-bit floats with one scale, or one an output.

For a module X of `out` x `in`:

    X.weight        F8_E4M3   [out, in]
    X.weight_scale  F32       [] or [1]; [out] or [out, 1] with FP8_PER_CHANNEL_PER_TOKEN
    X.input_scale   F32       of activations

    W[o, i] = q[o, i] * s[o]      both first rounded to the model's dtype

Source: ModelOpt 0.47, `torch/quantization/qtensor/fp8_tensor.py` (FP8QTensor.dequantize).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import DTYPES
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.float8_encoding import Float8Encoder
from adaptool.quantizers.model_dtype import model_dtype
from adaptool.quantizers.modelopt_config import SKIPPED, algorithm, check_no_rotation, orphan
from adaptool.quantizers.scale_grid import Grid, grid_of, rows_of_scales, scaled
from adaptool.quantizers.skip_lists import extended
from adaptool.quantizers.stored_parts import check_axes, check_dtype, check_shape, require
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SCHEME = Scheme(title="ModelOpt FP8", library="nvidia-modelopt", skip_list=SKIPPED)
ALGORITHMS = frozenset({"FP8", "FP8_PER_CHANNEL_PER_TOKEN"})


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The model's dtype; None where the config says another method or algorithm."""
    return {"dtype": model_dtype(config).name} if algorithm(config) in ALGORITHMS else None


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every FP8 weight with its scales; InputError where one of the two is missing."""
    for name, ref in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "weight" and ref.dtype.name == "F8_E4M3":
            yield _packed(module, ref, tensors, DTYPES[settings["dtype"]].name)
        else:
            orphan(ref, tensors, "F8_E4M3")


def _packed(module: str, codes: TensorRef, tensors: Mapping[str, TensorRef], dtype: str) -> Packed:
    scales = require(tensors, f"{module}.weight_scale", codes)
    check_no_rotation(module, tensors)
    check_axes(codes, 2)
    check_dtype(scales, "F32", "F16", "BF16")
    rows, columns = codes.shape
    height = rows if scales.elements == 1 else 1
    if height == 1 and scales.shape != (rows,):
        check_shape(scales, (rows, 1), f"{codes.name} of shape {[rows, columns]}")
    roles = {"weight": codes, "weight_scale": scales}
    if f"{module}.input_scale" in tensors:
        roles["input_scale"] = tensors[f"{module}.input_scale"]
    grid = Grid(rows, columns, height, columns).as_json()
    return Packed(codes.name, "modelopt_fp8", roles, codes.shape, DTYPES[dtype], {"grid": grid})


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): they and their scales are read, and no others."""
    import torch

    width = packed.columns
    dtype: torch.dtype = getattr(torch, str(packed.dtype.torch))
    codes = parts.span("weight", start * width, stop * width).reshape(-1, width)
    scales = rows_of_scales(parts, packed, "weight_scale", start, stop)
    return scaled(codes.to(dtype), scales.to(dtype), grid_of(packed).width)


def rewritten(packed: Packed) -> Mapping[str, tuple[int, ...]]:
    """Codes and scales."""
    return {role: packed.roles[role].shape for role in ("weight", "weight_scale")}


def encoder(packed: Packed) -> Float8Encoder:
    """448 over the largest magnitude of the tensor, or of an output."""
    return Float8Encoder(packed, "weight_scale")


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` added to the list, which vLLM reads as parts of names."""
    return extended(config, SKIPPED, modules)
