"""How a base comes in beside adapters: for its names, or for its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from adaptool.api.door import Door
from adaptool.api.writing import Opened, Sources
from adaptool.engine.extraction import DifferenceExtractor
from adaptool.engine.merged import MergedWeights
from adaptool.model.algebra import Measured, total
from adaptool.model.options import Machine
from adaptool.model.reading import BaseNames
from adaptool.ops.base_reading import names_of
from adaptool.ops.based import Based
from adaptool.ops.provenance import base_input
from adaptool.store.checkpoint import open_checkpoint


@dataclass(frozen=True, slots=True)
class OnBase:
    """The base that was named, with who computes on it; None where none was."""

    based: Based | None

    @classmethod
    def opened(
        cls, door: Door, base: Path | str | None, machine: Machine, *, weights: bool = True
    ) -> Self:
        """Its headers are all that is read so far; it is closed with the door's stack.

        Without `weights` they are all that can be read: of a base on the Hub no more is fetched.
        """
        if base is None:
            return cls(None)
        here = (door.path if weights else door.headers)(Path(base))
        checkpoint = door.stack.enter_context(open_checkpoint(here, opener=door.source))
        return cls(Based(checkpoint, MergedWeights(machine), DifferenceExtractor(machine)))

    @property
    def names(self) -> BaseNames | None:
        """The base's names, shapes and config."""
        return None if self.based is None else names_of(self.based.base)

    def sources(self, inputs: Sequence[Opened], *, decides: bool) -> Sources:
        """The adapters; the base as well where its weights decide the result."""
        found = Sources.of(inputs)
        if self.based is None or not decides:
            return found
        return replace(
            found,
            entries=(base_input(self.based.base), *found.entries),
            paths=(Path(self.based.base.name), *found.paths),
        )

    def measured(self, parts: Measured) -> Measured:
        """`parts`, and what was factored through the base so far."""
        if self.based is None:
            return parts
        return total([parts, *self.based.extractor.measured().values()])
