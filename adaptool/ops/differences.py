"""Two adapters or two checkpoints, module by module: directions, sizes, what only one has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts import decode
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.comparisons import DiffResult, DiffRow, StructureRow, config_rows
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.model.values import Comparison, ValueReader, total
from adaptool.ops.artifact import open_artifact
from adaptool.ops.base_norms import opened_drafts
from adaptool.ops.similarity import shape
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.tensors import TensorRef

Report = Callable[[int, int], None]
MOST_NAMED = 5


@dataclass(slots=True)
class _Ledger:
    """What builds up while two things are compared."""

    values: ValueReader
    rows: list[DiffRow] = field(default_factory=list)
    deltas: list[Comparison] = field(default_factory=list)
    tensors: list[Comparison] = field(default_factory=list)
    only: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    by_roles: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)

    def add(self, module: str, kind: str, found: Comparison | None) -> None:
        """One row; None for two that cannot be compared."""
        if found is None:
            self.apart.append(module)
            self.rows.append(DiffRow(module, kind, None, None))
            return
        (self.tensors if kind == "tensor" else self.deltas).append(found)
        self.rows.append(DiffRow(module, kind, found.cosine, found.relative_error))

    def add_alone(self, side: int, module: str, kind: str, squares: float) -> None:
        """What only one side has: zero on the other."""
        self.only[side].append(module)
        first, second = (0.0, squares) if side else (squares, 0.0)
        found = Comparison(0.0, first, second, squares)
        (self.tensors if kind == "tensor" else self.deltas).append(found)

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
    reading: Reading = AS_IT_STANDS,
    report: Report | None = None,
) -> DiffResult:
    """Compare what lies at two paths; `report` is told (bytes done, bytes in all) of checkpoints.

    MismatchError where one is an adapter and the other a checkpoint; else as `inspect_path`.
    """
    with ExitStack() as stack:
        opened = [open_artifact(path) for path in (a, b)]
        for each in opened:
            stack.callback(each.close)
        one, other = opened
        ledger = _Ledger(values)
        if isinstance(one, AdapterFiles) and isinstance(other, AdapterFiles):
            first, second = decode(one, reading), decode(other, reading)
            _diff_adapters(ledger, first, second)
            return ledger.result("adapter", _adapter_structure(first, second))
        if isinstance(one, Checkpoint) and isinstance(other, Checkpoint):
            structure = _diff_checkpoints(ledger, one, other, report)
            return ledger.result("checkpoint", structure)
        kinds = ["an adapter" if isinstance(each, AdapterFiles) else "a model" for each in opened]
        message = f"is {kinds[1]}, and {a} is {kinds[0]}: only two of a kind can be compared"
        hint = "merge the adapter first, or name another file"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=other.name, hint=hint)


def _diff_adapters(ledger: _Ledger, one: Adapter, other: Adapter) -> None:
    ours, theirs = _deltas(one), _deltas(other)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        mine, yours = ours.get(name), theirs.get(name)
        if mine is not None and yours is not None:
            _diff_delta(ledger, name, mine, yours)
        elif mine is not None:
            ledger.add_alone(0, name, "delta", _delta_squares(ledger, mine))
        elif yours is not None:
            ledger.add_alone(1, name, "delta", _delta_squares(ledger, yours))
    _diff_tensors(ledger, _whole_tensors(one), _whole_tensors(other))


def _deltas(adapter: Adapter) -> dict[str, Delta]:
    return {delta.parameter.removesuffix(".weight"): delta for delta in adapter.deltas}


def _whole_tensors(adapter: Adapter) -> dict[str, TensorRef]:
    """What the adapter brings whole, and what no layout could place; token rows by their rows."""
    found: dict[str, TensorRef] = {}
    for item in adapter.replaced:
        rows = "" if item.rows is None else f" rows {','.join(map(str, item.rows))}"
        found[f"{item.parameter}{rows}"] = item.value
    return found | {ref.name: ref for ref in adapter.leftover}


def _diff_delta(ledger: _Ledger, name: str, one: Delta, other: Delta) -> None:
    if shape(one) != shape(other):
        ledger.add(name, "delta", None)
        return
    found = ledger.values.compare(one, other)
    if found is not None:
        ledger.add(name, "delta", found)
        return
    ledger.by_roles.append(name)
    ledger.add(name, "roles", _roles(ledger.values, one, other))


def _roles(values: ValueReader, one: Delta, other: Delta) -> Comparison | None:
    """The tensors of two deltas of one tuner, scaled; None where they have not the same shapes."""
    if one.tuner != other.tuner or _role_shapes(one) != _role_shapes(other):
        return None
    found = total(values.compare_tensors(ref, other.roles[role]) for role, ref in one.roles.items())
    mine, yours = one.terms.scaling, other.terms.scaling
    if mine == yours:
        return found
    inner = mine * yours * found.inner
    first, second = mine**2 * found.first, yours**2 * found.second
    return Comparison(inner, first, second, max(0.0, first + second - 2 * inner))


def _role_shapes(delta: Delta) -> dict[str, tuple[int, ...]]:
    return {role: ref.shape for role, ref in delta.roles.items()}


def _delta_squares(ledger: _Ledger, delta: Delta) -> float:
    found = ledger.values.norm_squared(delta)
    if found is not None:
        return found
    return sum(ledger.values.squares(ref) for ref in delta.roles.values())


def _diff_checkpoints(
    ledger: _Ledger, one: Checkpoint, other: Checkpoint, report: Report | None
) -> list[StructureRow]:
    ours, theirs = (
        {name: draft.source for name, draft in opened_drafts(each).items()} for each in (one, other)
    )
    _diff_tensors(ledger, ours, theirs, report)
    dtypes = [
        dict(sorted(Counter(ref.dtype.name for ref in each.values()).items()))
        for each in (ours, theirs)
    ]
    changed = [StructureRow("dtypes", *dtypes)] if dtypes[0] != dtypes[1] else []
    return [*changed, *config_rows(one.config, other.config)]


def _diff_tensors(
    ledger: _Ledger,
    ours: Mapping[str, TensorRef],
    theirs: Mapping[str, TensorRef],
    report: Report | None = None,
) -> None:
    """Element by element; both sides' tensors by name."""
    whole = sum(ref.length for ref in ours.values()) or 1
    done = 0
    for name, ref in ours.items():
        match = theirs.get(name)
        if match is None:
            ledger.add_alone(0, name, "tensor", ledger.values.squares(ref))
        elif match.shape != ref.shape:
            ledger.add(name, "tensor", None)
        else:
            ledger.add(name, "tensor", ledger.values.compare_tensors(ref, match))
        done += ref.length
        if report is not None:
            report(done, whole)
    for name, ref in theirs.items():
        if name not in ours:
            ledger.add_alone(1, name, "tensor", ledger.values.squares(ref))


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
