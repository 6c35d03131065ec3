"""Delta space: methods that look at elements get the deltas a tile of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.combinations.draws import BLOCK_ROWS
from adaptool.combinations.method import (
    Combined,
    DeltaMethod,
    Deltas,
    Factored,
    Options,
    Rule,
    Tile,
)
from adaptool.linalg.streamed import leading

if TYPE_CHECKING:
    import torch

# Elements of the T pieces of a tile together: 32 MB of float64.
_TILE_ELEMENTS = 1 << 22
# A merged delta of up to this many elements (128 MB of float64) is made once and kept for the
# passes of the SVD; a larger one is made again in each.
_HELD_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class ProductDeltas:
    """Deltas that are products of the active adapters' factors; `height` is rows in a tile."""

    name: str
    parts: tuple[Factored, ...]
    height: int

    @classmethod
    def of(cls, name: str, parts: Sequence[Factored]) -> ProductDeltas:
        """With tiles of a height that keeps the memory small, a multiple of a block of draws."""
        rows = _TILE_ELEMENTS // (len(parts) * parts[0].shape[1])
        return cls(name, tuple(parts), max(1, rows // BLOCK_ROWS) * BLOCK_ROWS)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.parts[0].shape

    @property
    def weights(self) -> tuple[float, ...]:
        """The w_t."""
        return tuple(part.weight for part in self.parts)

    @property
    def places(self) -> tuple[int, ...]:
        """Each adapter's position in the caller's list."""
        return tuple(part.place for part in self.parts)

    def tiles(self) -> Iterator[Tile]:
        """The products of the rows of left with right, in float64."""
        rights = [part.right.double() for part in self.parts]
        for start in range(0, self.shape[0], self.height):
            rows = slice(start, min(start + self.height, self.shape[0]))
            lefts = [part.left[rows].double() for part in self.parts]
            yield rows, [left @ right for left, right in zip(lefts, rights, strict=True)]


@dataclass(frozen=True, slots=True)
class MergedTiles:
    """The merged delta, made again at every call."""

    deltas: Deltas
    rule: Rule

    def __call__(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Slices of rows in order and their merged pieces (rows, in)."""
        for rows, tile in self.deltas.tiles():
            yield rows, self.rule.apply(rows, tile)


def merged(deltas: Deltas, method: DeltaMethod, options: Options, rank: int) -> Combined:
    """The deltas merged by `method`: the best factors of rank `rank` and their error.

    InputError where the merged delta is not finite.
    """
    tiles = MergedTiles(deltas, method.rule(deltas, options))
    out, inner = deltas.shape
    if out * inner <= _HELD_ELEMENTS:
        held = list(tiles())
        found = leading(lambda: iter(held), deltas.shape, rank=rank, seed=options.seed)
    else:
        found = leading(tiles, deltas.shape, rank=rank, seed=options.seed)
    return Combined(found.left, found.right, found.relative_error, exact=found.relative_error == 0)
