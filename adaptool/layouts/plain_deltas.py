"""What layouts of plain LoRA share: a delta from a pair of factors, and what none of them holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Adapter, Delta, Form, Replaced
from adaptool.model.derived import leaves
from adaptool.model.encoding import Loss
from adaptool.names.module_kinds import Kind, kind_of
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

FACTORS = frozenset({"A", "B"})
EMBEDDING = frozenset({"embedding_A", "embedding_B"})
MAGNITUDE = "magnitude"


def is_embedding(module: str, model_types: Sequence[str] = ()) -> bool:
    """Whether a module's name is an embedding's, which a file's shapes cannot tell.

    `model_types`: the base's, where it is known.
    """
    return kind_of(model_types, f"{module}.weight", 2) is Kind.EMBEDDING


def lora_delta(
    module: str, roles: dict[str, TensorRef], scaling: float, alpha: float | None = None
) -> Delta:
    """The delta of PEFT's roles at exactly this scaling; InputError where the shapes are no pair.

    `alpha` is the file's own where it has one.
    """
    for ref in roles.values():
        check_factor(ref)
    first = roles.get("A") or roles.get("embedding_A")
    rank = first.shape[0] if first is not None and first.shape else 1
    known = scaling * rank if alpha is None else alpha
    told = float(rank) if math.isnan(known) else known
    tuner = "dora" if MAGNITUDE in roles else "lora"
    shapes = {role: ref.shape for role, ref in roles.items()}
    try:
        terms = tuners()[tuner].terms({"r": rank, "lora_alpha": told}, module, shapes)
    except InputError as error:
        if error.file is None and first is not None:
            error.file = first.file
        raise
    terms = replace(terms, scaling=scaling, alpha=None if math.isnan(known) else known)
    return Delta(module, f"{module}.weight", tuner, roles, terms)


def check_factor(ref: TensorRef) -> None:
    """InputError for a tensor without elements or of a dtype that holds no numbers."""
    if not ref.dtype.floating:
        message = f"dtype {ref.dtype.name} is no floating-point number"
        raise InputError(message, code=Code.DTYPE_NOT_FLOAT, file=ref.file, tensor=ref.name)
    if not ref.elements:
        message = f"shape {list(ref.shape)} holds no element"
        raise InputError(message, code=Code.ZERO_SIZE, file=ref.file, tensor=ref.name)


def matrix(ref: TensorRef) -> TensorRef:
    """The factor itself; InputError unless it has two axes."""
    if len(ref.shape) != 2:
        message = f"shape {list(ref.shape)} is no matrix"
        raise InputError(message, code=Code.SHAPE_MISMATCH, file=ref.file, tensor=ref.name)
    return ref


def slice_of(stack: TensorRef, place: int) -> TensorRef:
    """One matrix of a stack: a run of its bytes."""
    length = stack.length // stack.shape[0]
    offset = stack.offset + place * length
    return TensorRef(stack.name, stack.dtype, stack.shape[1:], offset, length, stack.source)


def missing_partner(present: TensorRef, absent: str) -> InputError:
    """The error for a factor that stands alone."""
    message = f"its other half {absent!r} is missing"
    hint = "the file is incomplete: save or download the adapter again"
    return InputError(
        message, code=Code.FACTOR_MISSING, file=present.file, tensor=present.name, hint=hint
    )


def names_of(delta: Delta, roles: Iterable[str] | None = None) -> tuple[str, ...]:
    """The stored tensors that a delta's roles are made of."""
    refs = [ref for role, ref in delta.roles.items() if roles is None or role in roles]
    return tuple(dict.fromkeys(leaf.name for ref in refs for leaf in leaves(ref)))


def is_plain(delta: Delta) -> bool:
    """Whether a delta is a product of two matrices for a linear layer or an embedding."""
    roles = frozenset(delta.roles) - {MAGNITUDE}
    forms = {Form.LINEAR: FACTORS, Form.EMBEDDING: EMBEDDING}
    known = tuners().get(delta.tuner)
    lora = known is not None and known.DECLARATION.peft_type == "LORA"
    return (
        lora
        and roles == forms.get(delta.terms.form)
        and not delta.terms.conventions
        and delta.parameter == f"{delta.module}.weight"
    )


def unheld(
    adapter: Adapter, holds: Callable[[Replaced], bool] = lambda _: False
) -> tuple[Loss, ...]:
    """What a layout of plain factors has no slot for; `holds` says which whole tensors it takes."""
    losses = [
        Loss(names_of(delta), f"no slot for {_kind(delta)} such as {delta.module}")
        for delta in adapter.deltas
        if not is_plain(delta)
    ]
    losses += [
        Loss(tuple(leaf.name for leaf in leaves(item.value)), f"no slot for {item.parameter}")
        for item in adapter.replaced
        if not holds(item)
    ]
    return tuple(losses)


def _kind(delta: Delta) -> str:
    if delta.terms.form in {Form.CONVOLUTION, Form.EXPERTS, Form.VECTOR}:
        return {"convolution": "convolutions", "experts": "PEFT's stacked experts"}.get(
            delta.terms.form, "biases"
        )
    return f"modules of the kind {delta.tuner}"
