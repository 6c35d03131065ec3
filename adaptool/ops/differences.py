"""Two adapters or two checkpoints, module by module: directions, sizes, what only one has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts import decode
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.comparisons import DiffResult, DiffRow, StructureRow, config_rows
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.model.values import Comparison, ValueReader, total
from adaptool.ops.artifact import open_artifact
from adaptool.ops.base_norms import opened_drafts
from adaptool.ops.identity import settled
from adaptool.ops.module_tensors import module_tensors
from adaptool.ops.similarity import shape
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

Report = Callable[[int, int], None]
T = TypeVar("T")

MOST_NAMED = 5
DELTA, ROLES, TENSOR = "delta", "roles", "tensor"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was compared, and how it turned out; None for two that cannot be compared."""

    kind: str
    found: Comparison | None


@dataclass(frozen=True, slots=True)
class _Question:
    """One module or tensor of both sides, or of the side `alone`; `bytes` of it are read."""

    name: str
    answer: Callable[[], _Answer]
    bytes: int
    alone: int | None = None


@dataclass(frozen=True, slots=True)
class _Kind(Generic[T]):
    """How things of one kind are compared, or measured where only one side has them."""

    name: str
    size: Callable[[T], int]
    compared: Callable[[T, T], _Answer]
    squares: Callable[[T], float]

    def questions(self, ours: Mapping[str, T], theirs: Mapping[str, T]) -> list[_Question]:
        """One for each name: ours in their order, then what only the other side has."""
        found = []
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            sides = [side[name] for side in (ours, theirs) if name in side]
            size = sum(map(self.size, sides))
            if len(sides) == len((ours, theirs)):
                found.append(_Question(name, partial(self.compared, *sides), size))
                continue
            alone = 0 if name in ours else 1
            found.append(_Question(name, partial(self._one_sided, alone, *sides), size, alone))
        return found

    def _one_sided(self, alone: int, thing: T) -> _Answer:
        """Zero on the other side."""
        squares = self.squares(thing)
        first, second = (0.0, squares) if alone else (squares, 0.0)
        return _Answer(self.name, Comparison(0.0, first, second, squares))


@dataclass(slots=True)
class _Ledger:
    """What builds up while two things are compared."""

    rows: list[DiffRow] = field(default_factory=list)
    deltas: list[Comparison] = field(default_factory=list)
    tensors: list[Comparison] = field(default_factory=list)
    only: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    by_roles: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)

    def add(self, question: _Question, answer: _Answer) -> None:
        """One row, or one name that only a side has."""
        found = answer.found
        if found is not None:
            (self.tensors if answer.kind == TENSOR else self.deltas).append(found)
        if question.alone is not None:
            self.only[question.alone].append(question.name)
            return
        if answer.kind == ROLES:
            self.by_roles.append(question.name)
        if found is None:
            self.apart.append(question.name)
            self.rows.append(DiffRow(question.name, answer.kind, None, None))
            return
        row = DiffRow(question.name, answer.kind, found.cosine, found.relative_error)
        self.rows.append(row)

    def result(self, kind: str, structure: Sequence[StructureRow]) -> DiffResult:
        """Everything, summed up."""
        whole = total(self.deltas or self.tensors)
        return DiffResult(
            kind=kind,
            modules=tuple(self.rows),
            cosine=whole.cosine,
            # Nothing that could be compared differs: that says nothing of the rest.
            relative_error=None if self.apart and not whole.difference else whole.relative_error,
            only_in_a=tuple(self.only[0]),
            only_in_b=tuple(self.only[1]),
            structure=tuple(structure),
            findings=tuple(_findings(self)),
        )


def diff_paths(
    a: Path,
    b: Path,
    *,
    values: ValueReader,
    readings: tuple[Reading, Reading] = (AS_IT_STANDS, AS_IT_STANDS),
    report: Report | None = None,
) -> DiffResult:
    """Compare what lies at two paths, each with its reading.

    `report` is told (bytes done, bytes in all).

    MismatchError where one is an adapter and the other a checkpoint; else as `inspect_paths`.
    """
    with ExitStack() as stack:
        opened = [open_artifact(path) for path in (a, b)]
        for each in opened:
            stack.callback(each.close)
        one, other = opened
        if isinstance(one, AdapterFiles) and isinstance(other, AdapterFiles):
            decoded = [decode(one, readings[0]), decode(other, readings[1])]
            first, second = settled(decoded, readings[0].base)
            ledger = _answered(_about_adapters(values, first, second), values, report)
            return ledger.result("adapter", _adapter_structure(first, second))
        if isinstance(one, Checkpoint) and isinstance(other, Checkpoint):
            ours, theirs = _same_names(one, other)
            ledger = _answered(_about_tensors(values, ours, theirs), values, report)
            structure = _checkpoint_structure((one, ours), (other, theirs))
            return ledger.result("checkpoint", structure)
        kinds = ["an adapter" if isinstance(each, AdapterFiles) else "a model" for each in opened]
        message = f"is {kinds[1]}, and {a} is {kinds[0]}: only two of a kind can be compared"
        hint = "merge the adapter first, or name another file"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=other.name, hint=hint)


def _answered(
    questions: Sequence[_Question], values: ValueReader, report: Report | None
) -> _Ledger:
    """All answers, taken down in the questions' order."""
    ledger, done = _Ledger(), 0
    whole = sum(question.bytes for question in questions) or 1
    answers = values.several(lambda question: question.answer(), questions)
    for question, answer in zip(questions, answers, strict=True):
        ledger.add(question, answer)
        done += question.bytes
        if report is not None:
            report(done, whole)
    return ledger


def _about_adapters(values: ValueReader, one: Adapter, other: Adapter) -> list[_Question]:
    """The modules, then what the adapters bring whole."""
    deltas = _Kind(DELTA, _delta_bytes, partial(_compared, values), partial(_squares, values))
    return [
        *deltas.questions(_deltas(one), _deltas(other)),
        *_about_tensors(values, _whole_tensors(one), _whole_tensors(other)),
    ]


def _deltas(adapter: Adapter) -> dict[str, Delta]:
    return {delta.parameter.removesuffix(".weight"): delta for delta in adapter.deltas}


def _whole_tensors(adapter: Adapter) -> dict[str, TensorRef]:
    """What the adapter brings whole, and what no layout could place; token rows by their rows."""
    found: dict[str, TensorRef] = {}
    for item in adapter.replaced:
        rows = "" if item.rows is None else f" rows {','.join(map(str, item.rows))}"
        found[f"{item.parameter}{rows}"] = item.value
    return found | {ref.name: ref for ref in adapter.leftover}


def _delta_bytes(delta: Delta) -> int:
    return sum(ref.length for ref in delta.roles.values())


def _compared(values: ValueReader, one: Delta, other: Delta) -> _Answer:
    if shape(one) != shape(other):
        return _Answer(DELTA, None)
    found = values.compare(one, other)
    if found is not None:
        return _Answer(DELTA, found)
    return _Answer(ROLES, _roles(values, one, other))


def _roles(values: ValueReader, one: Delta, other: Delta) -> Comparison | None:
    """The tensors of two deltas of one tuner, scaled; None where they have not the same shapes."""
    if one.tuner != other.tuner or _role_shapes(one) != _role_shapes(other):
        return None
    return total(
        _scaled(
            values.compare_tensors(ref, other.roles[role]), _scale(one, role), _scale(other, role)
        )
        for role, ref in one.roles.items()
    )


def _scale(delta: Delta, role: str) -> float:
    """What the role's numbers are multiplied by: the scaling is one factor's, not every role's."""
    proportional = tuners()[delta.tuner].DECLARATION.proportional
    return delta.terms.scaling if not proportional or role in proportional else 1.0


def _scaled(found: Comparison, mine: float, yours: float) -> Comparison:
    if mine == yours == 1.0:
        return found
    inner = mine * yours * found.inner
    first, second = mine**2 * found.first, yours**2 * found.second
    if mine == yours:
        return Comparison(inner, first, second, mine**2 * found.difference)
    return Comparison(inner, first, second, max(0.0, first + second - 2 * inner))


def _role_shapes(delta: Delta) -> dict[str, tuple[int, ...]]:
    return {role: ref.shape for role, ref in delta.roles.items()}


def _squares(values: ValueReader, delta: Delta) -> float:
    found = values.norm_squared(delta)
    if found is not None:
        return found
    return sum(values.squares(ref) for ref in delta.roles.values())


def _same_names(
    one: Checkpoint, other: Checkpoint
) -> tuple[Mapping[str, TensorRef], Mapping[str, TensorRef]]:
    """Both sides' tensors, as they are stored, or by the library's names where those differ."""
    ours, theirs = _plain_tensors(one), _plain_tensors(other)
    if ours.keys() == theirs.keys():
        return ours, theirs
    mine, yours = module_tensors(one).tensors, module_tensors(other).tensors
    apart = len(ours.keys() ^ theirs.keys())
    return (mine, yours) if len(mine.keys() ^ yours.keys()) < apart else (ours, theirs)


def _plain_tensors(checkpoint: Checkpoint) -> dict[str, TensorRef]:
    return {name: draft.source for name, draft in opened_drafts(checkpoint).items()}


def _about_tensors(
    values: ValueReader, ours: Mapping[str, TensorRef], theirs: Mapping[str, TensorRef]
) -> list[_Question]:
    """Element by element; both sides' tensors by name."""

    def compared(one: TensorRef, other: TensorRef) -> _Answer:
        alike = one.shape == other.shape
        return _Answer(TENSOR, values.compare_tensors(one, other) if alike else None)

    return _Kind(TENSOR, lambda ref: ref.length, compared, values.squares).questions(ours, theirs)


def _checkpoint_structure(
    *sides: tuple[Checkpoint, Mapping[str, TensorRef]],
) -> list[StructureRow]:
    dtypes = [
        dict(sorted(Counter(ref.dtype.name for ref in tensors.values()).items()))
        for _, tensors in sides
    ]
    changed = [StructureRow("dtypes", *dtypes)] if dtypes[0] != dtypes[1] else []
    return [*changed, *config_rows(*(checkpoint.config for checkpoint, _ in sides))]


def _adapter_structure(one: Adapter, other: Adapter) -> list[StructureRow]:
    layouts = StructureRow("layout", one.layout, other.layout)
    tuners = [
        dict(sorted(Counter(delta.tuner for delta in each.deltas).items())) for each in (one, other)
    ]
    rows = [layouts] if one.layout != other.layout else []
    rows += [StructureRow("tuners", *tuners)] if tuners[0] != tuners[1] else []
    return [*rows, *config_rows(one.config, other.config)]


def _findings(ledger: _Ledger) -> Iterable[Finding]:
    if ledger.by_roles:
        message = (
            f"{_some(ledger.by_roles)}: the delta is no product of two factors, so the adapter's "
            "own tensors are compared; other factors may make the same model"
        )
        yield Finding(Code.TUNER_UNSUPPORTED, Severity.NOTE, message)
    if ledger.apart:
        message = (
            f"{_some(ledger.apart)}: other shapes or another tuner on either side; "
            "counted as different, left out of the totals"
        )
        yield Finding(Code.SHAPE_MISMATCH, Severity.WARNING, message)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"
