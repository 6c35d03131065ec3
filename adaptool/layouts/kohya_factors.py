"""kohya's factors as PEFT's, and back.

`lora_down` is A (r, in[, *k]) and `lora_up` is B (out, r[, 1, ...]). With `lora_mid` (r, r, *k)
the convolution is a product of three: up mid down, whose last two make an A of the same rank.
`dora_scale` is DoRA's magnitude: (out, 1, ...) PEFT's, (1, in, ...) that of a norm over the
outputs. Source: LyCORIS 4.1.3, modules/locon.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.layouts.kohya_keys import alpha_of
from adaptool.model.adapter import Delta
from adaptool.model.derived import permuted, product, reshaped
from adaptool.model.fusing import Pair
from adaptool.model.reading import Reading
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

PLAIN, OUTPUT_NORM, INPUT_NORM = "lora", "dora", "dora_input"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a module's tensors hold: a pair of factors, and the tuner that they belong to."""

    tuner: str
    pair: Pair


def trained(name: str, roles: Mapping[str, TensorRef], reading: Reading) -> Trained:
    """The factors of one module; InputError where one is missing or they do not fit."""
    for role, ref in roles.items():
        if role != "alpha":
            check_factor(ref)
    down, up = _both(name, roles)
    a, b = _as_pair(name, down, up, roles.get("mid"))
    rank = a.shape[0]
    if b.shape[1] != rank:
        message = f"lora_down {list(down.shape)} has rank {rank}, lora_up {list(up.shape)} has"
        message = f"{message} rank {b.shape[1]}"
        raise InputError(message, code=Code.FACTOR_RANKS_DIFFER, file=down.file, tensor=down.name)
    pair = Pair(a, b, alpha_of(roles, rank, reading) / rank)
    magnitude = roles.get("dora_scale")
    if magnitude is None:
        return Trained(PLAIN, pair)
    tuner, flat = _magnitude(magnitude, b.shape[0], a.shape[1])
    return Trained(tuner, Pair(a, b, pair.scaling, flat))


def check_factor(ref: TensorRef) -> None:
    """InputError for a tensor without elements or of a dtype that holds no numbers."""
    if not ref.dtype.floating:
        message = f"dtype {ref.dtype.name} is no floating-point number"
        raise InputError(message, code=Code.DTYPE_NOT_FLOAT, file=ref.file, tensor=ref.name)
    if not ref.elements:
        message = f"shape {list(ref.shape)} holds no element"
        raise InputError(message, code=Code.ZERO_SIZE, file=ref.file, tensor=ref.name)


def _both(name: str, roles: Mapping[str, TensorRef]) -> tuple[TensorRef, TensorRef]:
    for here, there in (("down", "up"), ("up", "down")):
        if here not in roles:
            present = next(iter(roles.values()))
            message = f"lora_{here} is missing" + (f" beside lora_{there}" * (there in roles))
            hint = "the file is incomplete: save or download the adapter again"
            raise InputError(
                message, code=Code.FACTOR_MISSING, file=present.file, tensor=name, hint=hint
            )
    return roles["down"], roles["up"]


def _as_pair(
    name: str, down: TensorRef, up: TensorRef, mid: TensorRef | None
) -> tuple[TensorRef, TensorRef]:
    """A and B of one number of axes; `mid` is contracted with `down`."""
    axes = max(len(ref.shape) for ref in (down, up, *([] if mid is None else [mid])))
    if axes < 2 or any(len(ref.shape) < 2 for ref in (down, up)) or prod(up.shape[2:]) != 1:
        message = f"lora_down {list(down.shape)} and lora_up {list(up.shape)} are no pair"
        raise InputError(message, code=Code.SHAPE_MISMATCH, file=down.file, tensor=name)
    ones = (1,) * (axes - 2)
    b = reshaped(up, (*up.shape[:2], *ones))
    if mid is None:
        # DyLoRA writes one of a convolution's two factors as a matrix.
        return (reshaped(down, (*down.shape, *ones)) if len(down.shape) == 2 else down), b
    rank, inner = down.shape[:2]
    if prod(down.shape[2:]) != 1 or mid.shape[:2] != (up.shape[1], rank):
        message = (
            f"lora_mid {list(mid.shape)} does not stand between lora_up {list(up.shape)} and "
            f"lora_down {list(down.shape)}"
        )
        raise InputError(message, code=Code.SHAPE_MISMATCH, file=mid.file, tensor=mid.name)
    # (i, j, *k) -> (i, *k, j) @ (j, in) -> (i, *k, in) -> (i, in, *k)
    last = permuted(mid, (0, *range(2, axes), 1))
    whole = product(last, reshaped(down, (rank, inner)))
    return permuted(whole, (0, axes - 1, *range(1, axes - 1))), b


def _magnitude(ref: TensorRef, out: int, inner: int) -> tuple[str, TensorRef]:
    """The tuner whose norm this magnitude belongs to, and its numbers in a row."""
    shape = ref.shape
    if shape[0] == out and prod(shape) == out:
        return OUTPUT_NORM, reshaped(ref, (out,))
    if len(shape) > 1 and shape[:2] == (1, inner) and prod(shape) == inner:
        return INPUT_NORM, reshaped(ref, (inner,))
    message = f"dora_scale {list(shape)} is neither one number for each of {out} outputs nor"
    message = f"{message} for each of {inner} inputs"
    raise InputError(message, code=Code.SHAPE_MISMATCH, file=ref.file, tensor=ref.name)


def delta_of(module: str, tuner: str, pair: Pair) -> Delta:
    """The delta of one real module, in PEFT's roles and shapes."""
    roles = {"A": pair.a, "B": pair.b}
    if pair.magnitude is not None:
        kernel = pair.a.shape[2:]
        count = pair.magnitude.elements
        shape = (1, count, *(1 for _ in kernel)) if kernel else (count,)
        roles["magnitude"] = reshaped(pair.magnitude, shape)
    config = {"r": pair.rank, "lora_alpha": pair.scaling * pair.rank}
    shapes = {role: ref.shape for role, ref in roles.items()}
    terms = tuners()[tuner].terms(config, module, shapes)
    return Delta(module, f"{module}.weight", tuner, roles, terms)
