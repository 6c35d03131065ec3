"""The difference of two checkpoints as something to be factored: the seam to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from adaptool.model.adapter import Terms
from adaptool.model.algebra import Measured
from adaptool.store.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor of two checkpoints: `tuned - base`, seen as the delta that `terms` describe.

    `transposed`: the file holds (in, out), as Conv1D and embeddings do.
    """

    name: str
    base: TensorRef
    tuned: TensorRef
    terms: Terms
    transposed: bool = False


class Extractor(Protocol):
    """Factors differences, reading them tile by tile."""

    def is_changed(self, base: TensorRef, tuned: TensorRef) -> bool:
        """Whether any element differs; both have one shape."""
        ...

    def rank_for(self, difference: Difference, energy: float) -> int:
        """The least rank that keeps this share of the sum of squares, of all experts."""
        ...

    def factors(self, difference: Difference, rank: int) -> Mapping[str, TensorRef]:
        """LoRA factors of that rank by role, computed when they are read, for a scaling of 1."""
        ...

    def measured(self) -> Mapping[str, Measured]:
        """Error and norm of every difference that was factored so far, by name."""
        ...
