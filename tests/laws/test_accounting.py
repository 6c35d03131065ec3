"""Every tensor of an adapter ends used, carried or reported; weight 0 leaves the base alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import adaptool
import golden_cases
from adaptool.layouts import decode
from adaptool.model.derived import leaves
from adaptool.model.options import MergeOptions
from adaptool.model.plan import Plan
from adaptool.ops.merge import Part, plan_merge
from adaptool.store.adapter_files import open_adapter
from adaptool.store.checkpoint import open_checkpoint
from golden_cases import CASES, Case, Made


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case = request.param
    assert isinstance(case, Case)
    return golden_cases.make(case, tmp_path_factory.getbasetemp())


def _used(plan: Plan, adapter: str) -> set[str]:
    """Names of the adapter's tensors that some row of the plan reads."""
    refs = [row.source for row in plan.rows]
    for row in plan.rows:
        refs += [blend.value for blend in row.blends]
        refs += [ref for piece in row.pieces for ref in piece.delta.roles.values()]
    return {leaf.name for ref in refs if ref.file.startswith(adapter) for leaf in leaves(ref)}


def _reported(plan: Plan) -> set[str]:
    return {*plan.decisions.get("dropped", ()), *plan.decisions.get("skipped", ())}


def test_every_adapter_tensor_is_used_or_reported(made: Made) -> None:
    """Rows of the plan and the receipt's decisions together name every key of the file."""
    with open_checkpoint(made.base) as base, open_adapter(made.adapter) as files:
        plan = plan_merge(base, [Part(files, decode(files), 1.0)], MergeOptions())
        used, reported = _used(plan, str(made.adapter)), _reported(plan)
        assert used | reported == set(files.tensors)
        assert used & reported == set()


def test_every_adapter_tensor_is_in_one_place_after_decoding(made: Made) -> None:
    """A decoded adapter accounts for its file: deltas, replaced, leftover, dropped, once each."""
    with open_adapter(made.adapter) as files:
        adapter = decode(files)
        names = [ref.name for delta in adapter.deltas for ref in delta.roles.values()]
        names += [leaf.name for item in adapter.replaced for leaf in leaves(item.value)]
        names += [ref.name for ref in adapter.leftover]
        names += adapter.dropped
        assert sorted(names) == sorted(files.tensors)


def test_weight_zero_returns_the_bases_bytes(made: Made, tmp_path: Path) -> None:
    """Every file of the base, byte for byte; the receipt is the only other one."""
    result = adaptool.merge(made.base, made.adapter, tmp_path / "out", weight=0.0)
    files = {path.name: path.read_bytes() for path in made.base.iterdir() if path.is_file()}
    ours = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert ours.pop("adaptool.json")
    assert {name: ours[name] == content for name, content in files.items()} == dict.fromkeys(
        files, True
    )
    assert set(ours) == set(files)
    assert result.touched == 0


def test_verify_accepts_every_merge(made: Made, tmp_path: Path) -> None:
    """verify --exact recomputes what merge wrote, tie and vocabulary decisions included."""
    adaptool.merge(made.base, made.adapter, tmp_path / "out", weight=_weight(made.case))
    result = adaptool.verify(made.base, made.adapter, tmp_path / "out", exact=True)
    assert result.ok
    assert replace(result, findings=()).different == ()


def _weight(case: Case) -> float:
    # A tensor whose shape changes cannot be weighted.
    return 1.0 if case.vocabulary is not None or case.trained_on is not None else 0.6
