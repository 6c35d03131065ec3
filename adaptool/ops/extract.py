"""The adapter that turns one checkpoint into another.

Matrices become LoRA factors; what is no matrix, or would take as much room as factors, is carried
whole as a saved module. Names are those of the library's modules, so that PEFT loads the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from adaptool.dtypes import BY_TORCH_NAME, Dtype
from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts.peft_encode import PLAIN
from adaptool.model.adapter import Adapter, Delta, Form, Replaced, Terms
from adaptool.model.derived import zeros
from adaptool.model.extract_options import ExtractOptions
from adaptool.model.extraction import Difference, Extractor
from adaptool.model.options import OutputDtype
from adaptool.names.families import TRANSPOSED_EXPERTS
from adaptool.names.module_kinds import Kind
from adaptool.names.peft_families import is_taken
from adaptool.ops.extract_sides import Sides, sides_of
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.tensors import TensorRef

_MATRIX, _STACK = 2, 3
# PEFT's task by the end of the class name, where it says nothing of modules to save.
_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}


@dataclass(frozen=True, slots=True)
class Extracted:
    """The adapter, the differences behind its deltas by name, how many tensors did not change."""

    adapter: Adapter
    differences: Mapping[str, Difference]
    unchanged: int
    findings: tuple[Finding, ...]


@dataclass(slots=True)
class _Making:
    """What is asked for, and what builds up while the checkpoints are compared."""

    sides: Sides
    options: ExtractOptions
    extractor: Extractor
    deltas: list[Delta] = field(default_factory=list)
    replaced: dict[str, Replaced] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    unchanged: int = 0
    conv1d: bool = False


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a tensor is a delta: `transposed` where it lies so, `by_name` where PEFT targets it."""

    terms: Terms
    transposed: bool = False


Report = Callable[[int, int], None]


def extracted(
    base: Checkpoint,
    tuned: Checkpoint,
    options: ExtractOptions,
    extractor: Extractor,
    report: Report | None = None,
    *,
    allow_drop: Sequence[str] = (),
) -> Extracted:
    """The adapter `tuned - base`, its factors to be computed when they are written.

    Tensors that one side lacks and that match a glob of `allow_drop` are left out. MismatchError
    (exit 4), carrying every other misfit, where the checkpoints are not of one model, or where
    nothing differs.
    """
    making = _Making(sides_of(base, tuned, allow_drop), options, extractor)
    tensors = making.sides.tensors
    total, done = sum(after.length for _, after in tensors.values()), 0
    for name, (before, after) in tensors.items():
        _take(making, name, before, after)
        done += after.length
        if report is not None:
            report(done, total)
    if not making.deltas and not making.replaced:
        message = "no tensor differs from the base's: there is nothing to extract"
        raise MismatchError(message, code=Code.NOTHING_TO_DO, file=tuned.name)
    keeps_ties = _settle_ties(making)
    _complete(making)
    _name_a_target(making)
    return Extracted(
        replace(_adapter(making, base, tuned, keeps_ties=keeps_ties), dropped=making.sides.dropped),
        making.differences,
        making.unchanged,
        tuple(_notes(making)),
    )


def _take(making: _Making, name: str, before: TensorRef, after: TensorRef) -> None:
    """One tensor that both have: factors, a whole tensor, or nothing where it did not change."""
    if before.shape != after.shape:
        _check_resized(making, name, before.shape, after.shape)
        _save(making, name, after)
        return
    if not before.dtype.floating or not making.extractor.is_changed(before, after):
        making.unchanged += 1
        return
    _check_placed(making, name)
    shaped = _shape(making, name, before.shape)
    if shaped is None:
        _save(making, name, after)
        return
    difference = Difference(name, before, after, shaped.terms, shaped.transposed)
    rank = _rank(difference, making)
    if _is_cheap(shaped.terms, rank):
        _factor(making, name, difference, rank)
    else:
        _save(making, name, after)


def _check_placed(making: _Making, name: str) -> None:
    """MismatchError for what no module of the library is called, or the model itself holds."""
    message = None
    if name in making.sides.stored and making.sides.names.is_known and _is_moved(making, name):
        message = "the library makes its module's weights of it in a way that no adapter follows"
    elif "." not in name:
        message = "belongs to the model itself: PEFT can neither target nor save it"
    if message is not None:
        hint = "no adapter of PEFT can hold the difference"
        raise MismatchError(message, code=Code.UNSUPPORTED, tensor=name, hint=hint)


def _is_moved(making: _Making, name: str) -> bool:
    """Whether a tensor that no module has as it is stored is a piece of one."""
    pieces = making.sides.names.parameters.values()
    return any(piece.tensor == name for found in pieces for piece in found)


def _is_cheap(terms: Terms, rank: int) -> bool:
    """Whether factors take less room than the matrix (stacked experts cannot be saved alone)."""
    return bool(terms.experts) or rank * (terms.out + terms.inner) < terms.out * terms.inner


def _factor(making: _Making, parameter: str, difference: Difference, rank: int) -> None:
    making.differences[parameter] = difference
    by_name = bool(difference.terms.conventions or difference.terms.experts)
    module = parameter.rpartition(".")[0]
    making.deltas.append(
        Delta(
            module=module if by_name else parameter.removesuffix(".weight"),
            parameter=parameter,
            tuner="lora",
            roles=making.extractor.factors(difference, rank),
            terms=replace(difference.terms, rank=rank, alpha=float(rank)),
            dtype=_dtype(difference.tuned, making.options),
        )
    )


def _save(making: _Making, parameter: str, value: TensorRef) -> None:
    dtype = _dtype(value, making.options)
    making.replaced[parameter] = Replaced(parameter, value, saved_module=True, dtype=dtype)


def _check_resized(
    making: _Making, parameter: str, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """MismatchError unless it is an embedding or a head of another vocabulary."""
    kind = making.sides.names.kind(parameter, len(before))
    head = kind is Kind.LINEAR and parameter.rpartition(".")[0].count(".") <= 1
    if before[1:] == after[1:] and (kind is Kind.EMBEDDING or head):
        return
    message = f"{list(before)} in the base, {list(after)} in the tuned model"
    raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=parameter)


def _rank(difference: Difference, making: _Making) -> int:
    most = min(difference.terms.out, difference.terms.inner)
    wanted = making.options.rank
    if wanted is None:
        wanted = making.extractor.rank_for(difference, making.options.energy or 1.0)
    return min(wanted, most)


def _shape(making: _Making, parameter: str, shape: tuple[int, ...]) -> _Shape | None:
    """How the tensor is a delta; None for what is no matrix, or is saved with its module."""
    if len(shape) < _MATRIX or min(shape[:2]) < _MATRIX:
        return None
    kind = making.sides.names.kind(parameter, len(shape))
    if kind is Kind.ATTENTION:
        return None
    if kind is Kind.LINEAR and is_taken(making.sides.names.types, parameter.rpartition(".")[0]):
        kind = Kind.PARAMETER
    if kind is Kind.PARAMETER:
        return _of_parameter(making, parameter, shape)
    if kind is Kind.CONVOLUTION:
        kernel = shape[2:]
        return _Shape(Terms(Form.CONVOLUTION, shape[0], prod(shape[1:]), 1.0, kernel=kernel))
    if kind is Kind.LINEAR:
        return _Shape(Terms(Form.LINEAR, shape[0], shape[1], 1.0))
    making.conv1d |= kind is Kind.CONV1D
    form = Form.EMBEDDING if kind is Kind.EMBEDDING else Form.LINEAR
    return _Shape(Terms(form, shape[1], shape[0], 1.0), transposed=True)


def _of_parameter(making: _Making, name: str, shape: tuple[int, ...]) -> _Shape | None:
    """What PEFT targets by its own name: a matrix, or a stack of them."""
    if len(shape) == _MATRIX:
        by_name = {"parameter": True}
        return _Shape(Terms(Form.LINEAR, shape[0], shape[1], 1.0, conventions=by_name))
    if len(shape) != _STACK:
        return None
    count, rows, columns = shape
    if name in making.sides.flipped or TRANSPOSED_EXPERTS & set(making.sides.names.types):
        return _Shape(Terms(Form.EXPERTS, columns, rows, 1.0, experts=count), transposed=True)
    return _Shape(Terms(Form.EXPERTS, rows, columns, 1.0, experts=count))


def _dtype(value: TensorRef, options: ExtractOptions) -> Dtype:
    return value.dtype if options.dtype is OutputDtype.KEEP else BY_TORCH_NAME[str(options.dtype)]


def _settle_ties(making: _Making) -> bool:
    """Leave to PEFT what it ties itself; else each name of a shared matrix has a change of its own.

    True where PEFT is to keep the tie; of saved modules it wants both all the same.
    """
    sides = making.sides
    touched = {delta.parameter for delta in making.deltas} | making.replaced.keys()
    if not touched.intersection(sides.shared) or not sides.is_tied_by_peft():
        return False
    if sides.shared[0] not in making.replaced:
        _forget(making, set(sides.shared[1:]))
    return True


def _forget(making: _Making, names: set[str]) -> None:
    """Take the changes of these parameters back."""
    making.deltas = [delta for delta in making.deltas if delta.parameter not in names]
    for name in names:
        making.replaced.pop(name, None)
        making.differences.pop(name, None)


def _complete(making: _Making) -> None:
    """PEFT saves modules, not parameters: all tensors of a saved one come along.

    A module that is saved for its bias alone is saved whole, in place of its factors.
    """
    outer = _saved_modules(making)
    inside = {name for module in outer for name in making.sides.inside(module)}
    for name in inside - making.replaced.keys():
        _save(making, name, making.sides.tensors[name][1])
    kept = {name: making.replaced[name] for name in inside & making.replaced.keys()}
    _forget(making, inside)
    making.replaced = kept


def _saved_modules(making: _Making) -> set[str]:
    """The outermost modules of what is saved, and every one that PEFT takes for one of them.

    PEFT saves each module whose path ends with a name, in the middle of a component too.
    """
    saved = {name.rpartition(".")[0] for name in making.replaced}
    every = {name.rpartition(".")[0] for name in making.sides.tensors}
    meant = {name for name in every if name.endswith(tuple(saved))} if saved else set()
    return {name for name in meant if not any(name.startswith(f"{other}.") for other in meant)}


def _name_a_target(making: _Making) -> None:
    """PEFT wants one module that it targets: where all is saved whole, the smallest gets zeros."""
    if making.deltas:
        return
    free = [
        (before.elements, name, shaped.terms, before.dtype)
        for name, (before, _) in making.sides.tensors.items()
        if name not in making.replaced and name not in making.sides.stored
        for shaped in [_shape(making, name, before.shape)]
        if shaped is not None and not shaped.terms.conventions and not shaped.terms.experts
    ]
    if not free:
        return
    _, name, terms, dtype = min(free, key=lambda each: each[:2])
    making.deltas.append(
        Delta(
            module=name.removesuffix(".weight"),
            parameter=name,
            tuner="lora",
            roles={role: zeros(name, dtype, shape) for role, shape in _smallest(terms).items()},
            terms=replace(terms, rank=1, alpha=1.0),
        )
    )


def _smallest(terms: Terms) -> dict[str, tuple[int, ...]]:
    """Shapes of factors of rank 1."""
    if terms.form is Form.EMBEDDING:
        return {"embedding_A": (1, terms.inner), "embedding_B": (terms.out, 1)}
    kernel = terms.kernel
    inner = terms.inner // prod(kernel)
    return {"A": (1, inner, *kernel), "B": (terms.out, 1, *(1 for _ in kernel))}


def _adapter(making: _Making, base: Checkpoint, tuned: Checkpoint, *, keeps_ties: bool) -> Adapter:
    config = {
        **PLAIN,
        "fan_in_fan_out": making.conv1d,
        "modules_to_save": sorted(_saved_modules(making)) or None,
        "task_type": _task(base.config),
    }
    if keeps_ties:
        config["ensure_weight_tying"] = True
    return Adapter(
        name=tuned.name,
        layout="peft",
        config=config,
        deltas=tuple(making.deltas),
        replaced=tuple(making.replaced.values()),
        leftover=(),
        tensors={},
        findings=(),
        base=_base_name(base),
        keeps_ties=keeps_ties,
    )


def _task(config: Mapping[str, Any] | None) -> str | None:
    """PEFT's task type for the class that the config names, where it is a plain decoder."""
    names = (config or {}).get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    return next((task for ending, task in _TASKS.items() if name.endswith(ending)), None)


def _base_name(base: Checkpoint) -> str | None:
    """What the config calls the model, never a path of this machine."""
    found = (base.config or {}).get("_name_or_path")
    return found if isinstance(found, str) and found and not found.startswith(("/", ".")) else None


def _notes(making: _Making) -> Iterator[Finding]:
    if making.replaced:
        count = sum(item.value.elements for item in making.replaced.values())
        message = f"{len(making.replaced)} tensors are carried whole ({count} elements)"
        yield Finding(
            Code.CARRIED_WHOLE, Severity.NOTE, message, tensor=next(iter(making.replaced))
        )
