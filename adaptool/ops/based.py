"""Deltas that are no product of factors, taken through a base: as what they change in its weights.

DoRA's f(W) = m (W + s B A) / |W + s B A| has a delta f(W) - W of full rank, known only with W.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from adaptool.dtypes import Dtype
from adaptool.errors import AdaptoolError, MismatchError, gathered
from adaptool.findings import Code
from adaptool.model.adapter import Adapter, Delta, Form
from adaptool.model.based import BaseWeights, Change, Placed
from adaptool.model.derived import F32
from adaptool.model.extraction import Extractor
from adaptool.model.options import OutputDtype
from adaptool.model.plan import Piece, Row
from adaptool.model.tuner import Settling
from adaptool.ops.base_norms import with_deltas
from adaptool.ops.drafts import Draft, Drafts
from adaptool.ops.low_rank import written_dtype
from adaptool.store.checkpoint import Checkpoint
from adaptool.tuners import tuners


@dataclass(frozen=True, slots=True)
class Based:
    """A base, and those who compute on its weights."""

    base: Checkpoint
    weights: BaseWeights
    extractor: Extractor

    def factored(
        self,
        deltas: Sequence[Delta],
        change: Change,
        dtype: OutputDtype,
        rank: int | None,
        energy: float = 1.0,
    ) -> Delta:
        """The `deltas` of one parameter as LoRA factors of their `change`, computed when read.

        At `rank`, or at the least rank that keeps `energy` of the squares (which reads the base).
        """
        difference = self.weights.difference(change)
        if rank is None:
            rank = self.extractor.rank_for(difference, energy)
        rank = min(rank, change.terms.out, change.terms.inner)
        return replace(
            deltas[0],
            tuner="lora",
            roles=self.extractor.factors(difference, rank),
            terms=replace(difference.terms, rank=rank),
            dtype=_dtype(deltas, dtype),
            shared=frozenset(),
            reads={},
        )


def sized(adapter: Adapter, base: Checkpoint) -> Adapter:
    """The adapter with the sizes that stand in none of its tensors, where `base` tells them.

    So VeRA's or MiSS's product of factors is known; deltas that the base lacks stay as they are.
    """
    if all(map(_is_sized, adapter.deltas)):
        return adapter
    plain = _without_others(adapter, {delta.parameter for delta in adapter.deltas})
    known = {
        (piece.delta.module, piece.delta.parameter): piece.delta
        for draft in with_deltas(base, [(plain, 1.0)]).values()
        for piece in draft.pieces
    }
    deltas = tuple(
        delta if _is_sized(delta) else known.get((delta.module, delta.parameter), delta)
        for delta in adapter.deltas
    )
    return replace(adapter, deltas=deltas)


def _is_sized(delta: Delta) -> bool:
    return delta.terms.sized and not isinstance(tuners()[delta.tuner], Settling)


def changes(
    base: Checkpoint, summands: Sequence[tuple[Adapter, float]], parameters: Collection[str]
) -> dict[str, Change]:
    """What the weighted adapters together change of each of `parameters`, found as merge finds it.

    Without those that are optional and that the base lacks. MismatchError (exit 4), carrying every
    other misfit, where the base has not all of one.
    """
    parts = [(_without_others(adapter, parameters), weight) for adapter, weight in summands]
    drafts = with_deltas(base, parts)
    optional = {delta.parameter for part, _ in parts for delta in part.deltas if delta.optional} - {
        piece.delta.parameter for draft in drafts.values() for piece in draft.pieces
    }
    found: dict[str, Change] = {}
    errors: list[AdaptoolError] = []
    for parameter in (name for name in parameters if name not in optional):
        try:
            found[parameter] = _change(parameter, drafts, base)
        except MismatchError as error:
            errors.append(error)
    if errors:
        raise gathered(errors)
    return found


def with_other_deltas(change: Change, deltas: Mapping[int, Delta]) -> Change:
    """The change with other deltas in the same places; `deltas` by their adapter's position."""
    return replace(
        change,
        places=tuple(
            replace(placed, row=replace(placed.row, pieces=_other(placed.row.pieces, deltas)))
            for placed in change.places
        ),
    )


def _other(pieces: Sequence[Piece], deltas: Mapping[int, Delta]) -> tuple[Piece, ...]:
    return tuple(replace(piece, delta=deltas[piece.adapter]) for piece in pieces)


def _without_others(adapter: Adapter, parameters: Collection[str]) -> Adapter:
    """The adapter without whole tensors, but for those that the deltas stand on."""
    kept = tuple(item for item in adapter.replaced if item.parameter in parameters)
    return replace(adapter, replaced=kept)


def _change(parameter: str, drafts: Drafts, base: Checkpoint) -> Change:
    places: list[Placed] = []
    for draft in drafts.values():
        pieces = [piece for piece in draft.pieces if piece.delta.parameter == parameter]
        places += [
            Placed(_row(draft, [piece for piece in pieces if piece.view == view]), view)
            for view in dict.fromkeys(piece.view for piece in pieces)
        ]
    if not places:
        message = f"{base.name} has no such module"
        raise MismatchError(message, code=Code.MODULE_NOT_IN_BASE, tensor=parameter)
    first = places[0]
    change = Change(
        parameter, first.row.pieces[0].delta.terms, tuple(places), first.view.transposed
    )
    _check(change)
    return change


def _row(draft: Draft, pieces: Sequence[Piece]) -> Row:
    """The draft with these pieces alone; it has no seat, since it is not written."""
    source = draft.source
    return Row(
        name=draft.name,
        dtype=source.dtype,
        shape=source.shape,
        file="",
        offset=0,
        length=source.length,
        source=source,
        pieces=tuple(pieces),
        fold=draft.fold,
    )


def _check(change: Change) -> None:
    """MismatchError unless the places are a matrix (or stack), each element of it once."""
    views = [placed.view for placed in change.places]
    covered = sum(view.rows.count * view.columns.count for view in views)
    turned = {view.transposed for view in views}
    twice = any(
        count > 1
        for placed in change.places
        for count in Counter(piece.adapter for piece in placed.row.pieces).values()
    )
    if change.terms.form is Form.VECTOR:
        message = f"its {change.places[0].row.pieces[0].delta.tuner} delta is of a vector"
    elif twice:
        message = "two deltas of one adapter change it"
    elif len(turned) > 1 or covered != change.elements:
        message = f"the base holds {covered} of its {change.elements} elements in one orientation"
    else:
        return
    message = f"{message}, which no LoRA holds"
    raise MismatchError(message, code=Code.UNSUPPORTED, tensor=change.name)


def _dtype(deltas: Sequence[Delta], wanted: OutputDtype) -> Dtype:
    """As other made factors; indices do not count, nor what a delta reads of the base."""
    stored = [
        ref
        for delta in deltas
        for role, ref in delta.roles.items()
        if ref.dtype.floating and role not in delta.reads
    ]
    return written_dtype(stored, wanted) if stored else F32
