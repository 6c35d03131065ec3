"""What a reversible merge keeps, decided from headers and configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptool.model.plan import Document, Row
from adaptool.store.sidecar import Way
from adaptool.store.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Restoration:
    """How one tensor of the base comes back; `row` is what the merged model has in its place."""

    base: TensorRef
    way: Way
    row: Row | None

    @property
    def source(self) -> str:
        """The merged tensor's name, "" where none is needed."""
        return self.row.name if self.row is not None else ""


@dataclass(frozen=True, slots=True)
class Reversal:
    """What a reversible merge keeps: tensors, documents by role, what it says of itself."""

    tensors: tuple[Restoration, ...]
    documents: tuple[tuple[str, Document], ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stored(self) -> tuple[Restoration, ...]:
        """The tensors that are kept whole."""
        return tuple(one for one in self.tensors if one.way is Way.STORED)

    @property
    def stored_bytes(self) -> int:
        """Bytes of what is kept whole."""
        return sum(one.base.length for one in self.stored)
