"""FP8 weights with scales to multiply by: of the tensor, of each output, or of blocks of both.

For a module X, where the weight is [out, in], or for a parameter P that stacks experts:

    X.weight            F8_E4M3 (F8_E5M2)   [out, in]                     P: [E, out, in]
    X.weight_scale_inv  F32 F16 BF16 F8_E8M0 U8                           P_scale_inv
                        [ceil(out / h), ceil(in / w)] in blocks of h x w, the last ones cut short;
                        [out] or [out, 1] by outputs; one element for the tensor
                        also called weight_scale, scale (DeepSeek V4), qscale_weight (Mistral)

    W[o, i] = q[o, i] * s[o // h, i // w]      in float32, rounded once, to the model's dtype

F8_E8M0 and U8 scales are exponents; in a U8 one 255 stands for infinity, in F8_E8M0 for no number.
Where `expert_dtype` is `fp4`, I8 weights of [out, in / 2] hold two 4-bit floats a byte, the first
in the low half, with scales in blocks of 1 x 32. `fbgemm_fp8` has the scales by outputs.

Source: transformers 5.23, `integrations/finegrained_fp8.py` (Fp8Dequantize), `fbgemm_fp8.py`;
compressed-tensors 0.20, FP8BlockDequantizer for blocks cut short, which transformers either
refuses or spreads evenly instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import DTYPES
from adaptool.findings import Code
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.float8_encoding import Float8Encoder
from adaptool.quantizers.microscaling import e2m1, e8m0
from adaptool.quantizers.model_dtype import model_dtype
from adaptool.quantizers.scale_grid import Grid, grid_of, is_grid, rows_of_scales, scaled
from adaptool.quantizers.skip_lists import extended
from adaptool.quantizers.stacked_modules import with_stacks
from adaptool.quantizers.stored_parts import check_dtype, refuse, refuse_encoding
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SKIPPED = "modules_to_not_convert"
OLD_SKIPPED = "ignored_layers"
SCHEME = Scheme(title="FP8", library="transformers", skip_list=SKIPPED)
METHODS = frozenset({"fp8", "fbgemm_fp8"})
FLOATS = ("F8_E4M3", "F8_E5M2")
SCALES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
# Scales of activations: nothing of the weight, and of no use without it.
ACTIVATIONS = (
    *("activation_scale", "activation_scale_inv", "input_scale", "input_scale_inv"),
    *("input_scale_ub", "qscale_act"),
)
MX_BLOCK = (1, 32)


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Block height and width (None: the scales' shapes say it), fp4 experts, the model's dtype."""
    method = str(config.get("quant_method")).lower()
    if method not in METHODS:
        return None
    block = config.get("weight_block_size", (128, 128) if method == "fp8" else None)
    if block is not None and not _is_block(block):
        return None
    return {
        "block": None if block is None else list(block),
        "fp4": config.get("expert_dtype") == "fp4",
        "dtype": model_dtype(config).name if method == "fp8" else "BF16",
        "powers": config.get("scale_fmt") == "ue8m0",
    }


def _is_block(block: object) -> bool:
    return (
        isinstance(block, Sequence)
        and len(block) == 2
        and all(isinstance(size, int) and size > 0 for size in block)
    )


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every FP8 weight with its scales; InputError where one of the two is missing."""
    coded = {*FLOATS, "I8"} if settings["fp4"] else {*FLOATS}
    for ref in tensors.values():
        if ref.dtype.name in coded:
            scales = _scales(ref, tensors)
            yield _packed(ref, scales, tensors, settings)
        else:
            _check_owner(ref, tensors, coded)


def _scales(codes: TensorRef, tensors: Mapping[str, TensorRef]) -> TensorRef:
    found = [tensors[name] for name in _scale_names(codes.name) if name in tensors]
    if not found:
        refuse(codes, f"is {codes.dtype.name}, and its {_scale_names(codes.name)[0]} is missing")
    if len(found) > 1:
        refuse(codes, f"has two scales: {found[0].name} and {found[1].name}")
    return found[0]


def _scale_names(name: str) -> list[str]:
    module, _, part = name.rpartition(".")
    if part == "weight":
        return [f"{module}.{scale}" for scale in SCALES]
    return [f"{name}_scale_inv", f"{name}_scale"]


def _check_owner(ref: TensorRef, tensors: Mapping[str, TensorRef], coded: set[str]) -> None:
    """InputError where a scale of weights belongs to none that is packed."""
    if ref.name.endswith(ACTIVATIONS):
        return
    for ending in (".weight_scale_inv", ".weight_scale", "_scale_inv"):
        if ref.name.endswith(ending):
            stem = ref.name.removesuffix(ending)
            owner = f"{stem}.weight" if ending.startswith(".") else stem
            if owner not in tensors:
                refuse(ref, f"is the scale of {owner}, which is missing")
            if tensors[owner].dtype.name not in coded:
                refuse(ref, f"is the scale of {owner}, which is {tensors[owner].dtype.name}")
            return


def _packed(
    codes: TensorRef,
    scales: TensorRef,
    tensors: Mapping[str, TensorRef],
    settings: Mapping[str, Any],
) -> Packed:
    if len(codes.shape) not in {2, 3} or 0 in codes.shape:
        message = f"has shape {list(codes.shape)}; a packed weight has 2 or 3 axes, none empty"
        refuse(codes, message, code=Code.SHAPE_MISMATCH)
    check_dtype(scales, "F32", "F16", "BF16", "F8_E8M0", "U8")
    halved = codes.dtype.name == "I8"
    shape = (*codes.shape[:-1], codes.shape[-1] * (2 if halved else 1))
    block = MX_BLOCK if halved else settings["block"]
    grid = _grid(codes, shape, scales, block)
    module, _, part = codes.name.rpartition(".")
    stem = f"{module}." if part == "weight" else f"{codes.name}_"
    extra = {part: tensors[stem + part] for part in ACTIVATIONS if stem + part in tensors}
    return Packed(
        name=codes.name,
        scheme="fp8",
        roles={"weight": codes, "scale": scales, **extra},
        shape=shape,
        dtype=DTYPES[settings["dtype"]],
        settings={"grid": grid.as_json(), "powers": settings["powers"]},
    )


def _grid(
    codes: TensorRef, shape: Sequence[int], scales: TensorRef, block: Sequence[int] | None
) -> Grid:
    """Where the scales lie; InputError where their shape is none of those known."""
    *stack, rows, columns = shape
    known = [Grid(rows, columns, *block)] if block else _even(shape, scales)
    known += [Grid(rows, columns, 1, columns), Grid(rows, columns, *MX_BLOCK)]
    found = [grid for grid in known if is_grid(scales.shape, grid, stack)]
    if not found:
        found = _flat(shape, scales)
    if not found:
        how = f" in blocks of {block[0]} x {block[1]}" if block else ""
        message = f"has shape {list(scales.shape)}; {codes.name} of shape {list(shape)}{how}"
        reason = f"{message} asks for {[*stack, *known[0].shape]}"
        refuse(scales, reason, code=Code.SHAPE_MISMATCH, field="weight_block_size")
    return found[0]


def _flat(shape: Sequence[int], scales: TensorRef) -> list[Grid]:
    """The grid of scales with fewer axes than a grid: one for all, one a matrix, one an output."""
    *stack, rows, columns = shape
    if scales.elements == 1:
        whole = rows * stack[0] if stack else rows
        return [Grid(whole, columns, whole, columns)]
    if stack and scales.shape in {(*stack,), (*stack, 1, 1)}:
        return [Grid(rows, columns, rows, columns)]
    if not stack and scales.shape == (rows,):
        return [Grid(rows, columns, 1, columns)]
    return []


def _even(shape: Sequence[int], scales: TensorRef) -> list[Grid]:
    """Blocks that divide the weight evenly, as many as there are scales."""
    rows, columns = shape[-2:]
    if len(scales.shape) != len(shape) or 0 in scales.shape:
        return []
    down, across = scales.shape[-2:]
    even = not rows % down and not columns % across
    return [Grid(rows, columns, rows // down, columns // across)] if even else []


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): they and the scales of their blocks are read, and no others."""
    import torch

    width = packed.roles["weight"].shape[-1]
    codes = parts.span("weight", start * width, stop * width).reshape(-1, width)
    if codes.dtype == torch.int8:
        values = e2m1(codes.view(torch.uint8), torch.float32)
    else:
        values = codes.float()
    scales = rows_of_scales(parts, packed, "scale", start, stop)
    scales = e8m0(scales) if scales.dtype == torch.uint8 else scales.float()
    dtype: torch.dtype = getattr(torch, str(packed.dtype.torch))
    return scaled(values, scales, grid_of(packed).width).to(dtype)


def rewritten(packed: Packed) -> Mapping[str, tuple[int, ...]]:
    """Codes and scales; MismatchError for 4-bit experts and exponents without a float's dtype."""
    if packed.roles["weight"].dtype.name == "I8":
        refuse_encoding(packed, "holds 4-bit floats, whose steps are coarser than most deltas")
    if packed.roles["scale"].dtype.name == "U8":
        refuse_encoding(packed, "has scales stored as bare exponents")
    return {role: packed.roles[role].shape for role in ("weight", "scale")}


def encoder(packed: Packed) -> Float8Encoder:
    """As transformers' Fp8Quantize: 448 over the largest magnitude of a block."""
    return Float8Encoder(packed, "scale", powers=packed.settings["powers"])


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` and their `experts` added to the list, under the name or names it has.

    vLLM prefers `ignored_layers`; transformers reads it only where the other is absent. Loaders
    skip the head by themselves only without a list.
    """
    keys = [key for key in (OLD_SKIPPED, SKIPPED) if config.get(key) is not None] or [SKIPPED]
    changed = dict(config)
    for key in keys:
        changed = extended(changed, key, with_stacks(modules), default=("lm_head",))
    return changed
