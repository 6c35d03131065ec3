"""One layer for several projections, of which some are trained: loralib's MergedLinear.

A (k r, in) holds the A's of the k trained ones, B (k out / n, r) their B's; the rows of the output
are n equal parts. As one plain pair, A stays and the B's stand on a diagonal, with rows of zeros
where nothing is trained. Early PEFT kept B as the kernel of a convolution, (k out / n, r, 1).
Source: loralib 0.1.2, layers.py; PEFT 0.2.0, tuners/lora.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.derived import block_diagonal, joined, reshaped, taken, zeros
from adaptool.model.view import Span
from adaptool.store.tensors import TensorRef

PARTS = 3
# What is trained where nothing says which two of q, k and v: q and v, as in all examples.
_BY_COUNT = {1: (True, False, False), 2: (True, False, True), 3: (True, True, True)}
_KERNEL_AXES = 3


def trained_parts(a: TensorRef, b: TensorRef) -> int:
    """How many projections the factors are of; 1 for a plain pair, 0 where they do not fit."""
    if len(a.shape) != 2 or len(b.shape) != 2 or not b.shape[1]:
        return 0
    count, rest = divmod(a.shape[0], b.shape[1])
    return 0 if rest or b.shape[0] % max(count, 1) else count


def as_plain_pair(
    a: TensorRef, b: TensorRef, enabled: Sequence[bool] | None = None
) -> tuple[TensorRef, TensorRef]:
    """A and the whole B (out, k r); InputError where the shapes are not of k projections."""
    count = trained_parts(a, b)
    mask = tuple(enabled) if enabled else _BY_COUNT.get(count, ())
    if not count or sum(mask) != count:
        message = f"lora_A {list(a.shape)} and lora_B {list(b.shape)} are no pair of factors"
        raise InputError(message, code=Code.SHAPE_MISMATCH, file=b.file, tensor=b.name)
    size = b.shape[0] // count
    blocks = [taken(b, Span(place * size, size), 0) for place in range(count)]
    diagonal = block_diagonal(blocks)
    rows = iter(range(count))
    parts = [
        taken(diagonal, Span(next(rows) * size, size), 0)
        if trained
        else zeros(b.name, b.dtype, (size, a.shape[0]))
        for trained in mask
    ]
    return a, joined(parts, 0)


def unmerged(
    config: Mapping[str, Any], roles: Mapping[str, TensorRef]
) -> tuple[Mapping[str, Any], Mapping[str, TensorRef]]:
    """Config and roles of one module of an early PEFT file as a plain pair's.

    What is no such module comes back as it is.
    """
    a, b = roles.get("A"), roles.get("B")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != _KERNEL_AXES:
        return config, roles
    if b.shape[2] != 1 or "lora_alpha" not in config:
        return config, roles
    flat = reshaped(b, b.shape[:2])
    mask = config.get("enable_lora")
    first, second = as_plain_pair(a, flat, mask if isinstance(mask, list) else None)
    # Alpha over r stays what it was: both count all projections now.
    count = a.shape[0] // b.shape[1]
    scaled = {"r": a.shape[0], "lora_alpha": config["lora_alpha"] * count}
    return {**config, **scaled}, {**roles, "A": first, "B": second}
