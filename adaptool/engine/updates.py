"""A row's deltas made ready to be added: factors loaded, column norms taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptool.engine.lane import Lane, Prepared
from adaptool.engine.tiles import OBSERVED_ELEMENTS, tile_height
from adaptool.model.plan import Row
from adaptool.model.tuner import Observing
from adaptool.tuners import tuners

if TYPE_CHECKING:
    from adaptool.engine.factors import FactorStore


def prepared_updates(row: Row, lane: Lane, factors: FactorStore, *, exact: bool) -> list[Prepared]:
    """The updates of the row's pieces in their order; those that must see all of W have seen it."""
    made = []
    held = []  # until the device is done with them: what is let go of earlier is reused
    with lane.computing():
        for piece in row.pieces:
            tuner = tuners()[piece.delta.tuner]
            held.append(factors.factors(piece.delta))
            update = tuner.prepare(held[-1], piece.delta.terms, piece.view, piece.weight, exact)
            made.append(Prepared(piece, update, tuner.DECLARATION.additive))
    watching = [
        (prepared.piece, prepared.update)
        for prepared in made
        if isinstance(prepared.update, Observing)
    ]
    if watching:
        lane.observe(row, tile_height(row.matrix[1], OBSERVED_ELEMENTS), watching)
    return made
