"""What every tuner must keep to, on its own examples; a new file is under every law here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import adaptool
import tuner_cases
from adaptool.engine.factors import load
from adaptool.errors import InputError
from adaptool.layouts import decode
from adaptool.model.adapter import Adapter
from adaptool.model.options import MergeOptions
from adaptool.model.plan import Piece, Plan, Row
from adaptool.model.results import AdapterSummary
from adaptool.model.tuner import Carrying, LowRank, Observing, Update
from adaptool.model.view import View
from adaptool.ops.merge import Part, plan_merge
from adaptool.store.adapter_files import open_adapter
from adaptool.store.checkpoint import open_checkpoint
from adaptool.tuners import tuners
from golden_cases import Tensors, tensors_of
from tuner_cases import Case, Pair, examples, make, strangers

every_case = tuner_cases.every_case()
every_tuner = pytest.mark.parametrize("tuner", tuners())


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The case of the test, on disk."""
    case = request.node.callspec.params["case"]
    assert isinstance(case, Case)
    return make(case, tmp_path_factory.getbasetemp())


@every_tuner
def test_tuner_has_examples_on_two_architectures(tuner: str) -> None:
    """A tuner without an example would be under no law."""
    assert len({example.model for example in examples(tuner)}) >= 2


def test_every_file_of_examples_has_a_tuner() -> None:
    """A tuner that was renamed takes its examples along."""
    assert strangers() == set()


@every_tuner
def test_declaration_and_offers_agree(tuner: str) -> None:
    """Low rank is offered where it is declared; invertible is one of three words."""
    declared = tuners()[tuner].DECLARATION
    assert declared.title
    assert declared.invertible in {"exactly", "rounding", "no"}
    assert declared.tile in {"any", "rows", "whole"}
    if declared.low_rank:
        assert isinstance(tuners()[tuner], LowRank)


@every_case
def test_example_is_of_its_tuner(case: Case, pair: Pair) -> None:
    """The file is decoded with the tuner whose example it is."""
    with open_adapter(pair.adapter) as files:
        adapter = decode(files)
    found = {delta.tuner for delta in adapter.deltas} | {item.tuner for item in adapter.replaced}
    assert case.tuner in found


@every_case
def test_inspect_shows_what_the_tuner_declares(case: Case, pair: Pair) -> None:
    """Title, additive, low-rank, tile, invertible, workspace: as its file says.

    A bias that a LoRA layer shifts is counted with its layer.
    """
    summary = adaptool.inspect(pair.adapter)
    assert isinstance(summary, AdapterSummary)
    assert case.tuner in {*summary.tuners, "shift"}
    found = summary.as_json()["tuner_properties"]
    assert found == {name: tuners()[name].DECLARATION.as_json() for name in summary.tuners}


@every_case
def test_every_tensor_of_the_file_is_used_or_reported(case: Case, pair: Pair) -> None:
    """Deltas, whole tensors, what is left and what is dropped hold every name once or shared."""
    del case
    with open_adapter(pair.adapter) as files:
        adapter = decode(files)
        assert _names(adapter) == set(files.tensors)
        assert adapter.leftover == ()

    def check(plan: Plan) -> None:
        used = {ref.name for row in plan.rows for ref in _refs(row)}
        reported = {*plan.decisions.get("dropped", ()), *plan.decisions.get("skipped", ())}
        assert used | reported >= set(adapter.tensors)
        # Nothing is left out but a second copy of what is used, as tied weights have one.
        stored = tensors_of(pair.adapter)
        for name in reported & set(stored):
            twins = (stored[other] for other in used & set(stored))
            assert any(torch.equal(stored[name], value) for value in twins), name

    pair.plan(check)


def _names(adapter: Adapter) -> set[str]:
    names = {ref.name for delta in adapter.deltas for ref in delta.roles.values()}
    names |= {item.value.name for item in adapter.replaced}
    return names | {ref.name for ref in adapter.leftover} | set(adapter.dropped)


def _refs(row: Row) -> Iterator[object]:
    yield row.source
    yield from (blend.value for blend in row.blends)
    for piece in row.pieces:
        yield from piece.delta.roles.values()


@every_case
def test_weight_0_returns_the_bases_bytes(case: Case, pair: Pair, tmp_path: Path) -> None:
    """Nothing of the adapter is left at weight 0."""
    del case
    assert _same(pair.merged(tmp_path / "out", weight=0.0), tensors_of(pair.base))


@every_case
def test_bytes_do_not_depend_on_threads_or_tiles(
    case: Case, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread with whole tensors, and several with tiles of a few rows."""
    del case
    expected = pair.merged(tmp_path / "out", weight=0.7)
    monkeypatch.setattr("adaptool.engine.tiles.JOB_ELEMENTS", 300)
    for threads, elements in ((3, 100), (2, 1)):
        out = tmp_path / f"{threads}"
        found = pair.merged(out, threads=threads, tile_elements=elements, weight=0.7)
        assert _same(found, expected), (threads, elements)


@every_case
def test_dtypes_kept_and_asked_for_hold_the_same_values(
    case: Case, pair: Pair, tmp_path: Path
) -> None:
    """A wider dtype holds the same result, rounded later."""
    del case
    narrow = pair.merged(tmp_path / "narrow", dtype="bfloat16")
    wide = pair.merged(tmp_path / "wide", dtype="float32")
    for name, value in wide.items():
        if value.is_floating_point():
            assert torch.allclose(narrow[name].float(), value, rtol=2**-7, atol=1e-30), name


@every_case
def test_weight_is_a_share_of_the_change(case: Case, pair: Pair, tmp_path: Path) -> None:
    """W + w (f(W) - W): half the weight is half the way."""
    del case
    base = tensors_of(pair.base)
    whole = pair.merged(tmp_path / "whole")
    half = pair.merged(tmp_path / "half", weight=0.5)
    for name, value in whole.items():
        middle = (base[name].double() + value.double()) / 2
        assert torch.allclose(half[name].double(), middle, rtol=1e-5, atol=1e-6), name


@every_case
def test_low_rank_form_equals_the_delta(case: Case, pair: Pair) -> None:
    """`scaling * B A` is what the update adds."""
    if not tuners()[case.tuner].DECLARATION.low_rank:
        pytest.skip("its delta is no product of thin factors")
    for seen in _pieces(case, pair):
        terms, view = seen.piece.delta.terms, seen.piece.view
        tuner = tuners()[case.tuner]
        assert isinstance(tuner, LowRank)
        try:
            left, right = tuner.product_factors(seen.factors, terms, view.expert)
        except InputError:
            continue
        assert (left.shape[0], right.shape[1]) == (terms.out, terms.inner)
        product = (left @ right).mul_(terms.scaling)
        added = _applied(seen, seen.base) - seen.base
        assert torch.allclose(added, _under(product, view), rtol=1e-9, atol=1e-10)


@every_case
def test_additive_and_mixing_are_declared_truly(case: Case, pair: Pair) -> None:
    """Another W changes f(W) - W just where the declaration says so."""
    declared = tuners()[case.tuner].DECLARATION
    if isinstance(tuners()[case.tuner], Carrying):
        pytest.skip("it brings whole tensors")
    depends = False
    for seen in _pieces(case, pair):
        view, base = seen.piece.view, seen.base
        other = base.clone()
        other[-1] *= 1.5
        before, after = _applied(seen, base), _applied(seen, other)
        same = torch.allclose(before - base, after - other, rtol=1e-9, atol=1e-12)
        depends = depends or not same
        assert same or not declared.additive
        over_rows = "inputs" if view.transposed else "outputs"
        if over_rows not in declared.mixes and not isinstance(_update(seen), Observing):
            assert torch.equal(before[:-1], after[:-1])
    assert depends is not declared.additive


@dataclass(frozen=True)
class Seen:
    """A piece of a plan, its factors and what its view sees of the base, in float64."""

    piece: Piece
    factors: dict[str, torch.Tensor]
    base: torch.Tensor


def _pieces(case: Case, pair: Pair) -> list[Seen]:
    """The tuner's pieces in the plan."""
    found: list[Seen] = []
    with open_checkpoint(pair.base) as base, open_adapter(pair.adapter) as files:
        plan = plan_merge(base, [Part(files, decode(files), 1.0)], MergeOptions())
        for row in plan.rows:
            weights = load(row.source).double().reshape(row.matrix)
            found += [
                Seen(piece, _read(piece), _part(weights, piece.view))
                for piece in row.pieces
                if piece.delta.tuner == case.tuner
            ]
    return found


def _read(piece: Piece) -> dict[str, torch.Tensor]:
    return {
        role: load(ref).double() if ref.dtype.floating else load(ref)
        for role, ref in piece.delta.roles.items()
    }


def _part(weights: torch.Tensor, view: View) -> torch.Tensor:
    return weights[list(view.rows.indices())][:, list(view.columns.indices())]


def _under(product: torch.Tensor, view: View) -> torch.Tensor:
    turned = product.T if view.transposed else product
    if view.take_rows is not None:
        turned = turned[list(view.take_rows.indices())]
    if view.take_columns is not None:
        turned = turned[:, list(view.take_columns.indices())]
    return turned


def _update(seen: Seen) -> Update:
    delta = seen.piece.delta
    tuner = tuners()[delta.tuner]
    return tuner.prepare(seen.factors, delta.terms, seen.piece.view, 1.0, exact=True)


def _applied(seen: Seen, base: torch.Tensor) -> torch.Tensor:
    """f(W), as one tile."""
    update = _update(seen)
    rows = slice(0, base.shape[0])
    if isinstance(update, Observing):
        update.observe(base, rows)
        update.settle()
    out = base.clone()
    update.accumulate(out, base, rows)
    return out


def _same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.uint8), right[name].view(torch.uint8))
        for name in left
        if left[name].numel() and left[name].ndim
    )
