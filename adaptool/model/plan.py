"""The Plan: one row per output tensor, and everything else the output holds.

A plan is made from headers and configs alone; it can be printed, compared and digested. The engine
fills its seats in any order, on any device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from adaptool.dtypes import Dtype
from adaptool.findings import Finding
from adaptool.model.adapter import Delta
from adaptool.model.options import Precision
from adaptool.model.quantizer import Packed
from adaptool.model.view import View
from adaptool.store.source import Source
from adaptool.store.tensors import TensorRef

LEAST_RETAINED = 0.5
"""The share of its delta that a recoded weight must keep, unless a loss is allowed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One delta on one view of a row's tensor, at a weight; `adapter` is its place in the list."""

    adapter: int
    delta: Delta
    view: View
    weight: float


@dataclass(frozen=True, slots=True)
class Blend:
    """A tensor that an adapter carries, mixed in: `W + weight * (value - W)`.

    `rows`: only these rows of W, row k of `value` for row `rows[k]` (None: all of it). `view`: only
    these rows and columns, of which `value` is the matrix; what the view says to turn or to take is
    done in it.
    """

    adapter: int
    value: TensorRef
    weight: float
    rows: tuple[int, ...] | None = None
    view: View | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it mixes in all of the tensor."""
        return self.rows is None and self.view is None

    def reaches(self, view: View) -> bool:
        """Whether it mixes a trained module into what `view` names; token rows are none."""
        if self.rows is not None:
            return False
        return self.view is None or self.view.overlaps(view)

    def as_json(self) -> dict[str, Any]:
        """The blend in the plan's table."""
        body: dict[str, Any] = {
            "adapter": self.adapter,
            "tensor": self.value.name,
            "weight": self.weight,
        }
        return body if self.view is None else {**body, "view": self.view.as_json()}


@dataclass(frozen=True, slots=True)
class Row:
    """One output tensor: where its bytes come from, what is added, and its seat.

    `offset` is absolute in `file`; `fold` is how many leading axes make the rows of the matrix
    that views speak of.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int
    source: TensorRef
    pieces: tuple[Piece, ...] = ()
    blends: tuple[Blend, ...] = ()
    fold: int = 1
    replaced: bool = False
    recoded: Recoded | None = None

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are the source's bytes."""
        if self.recoded is not None:
            return False
        return not self.pieces and not self.blends and self.source.dtype == self.dtype

    @property
    def is_touched(self) -> bool:
        """Whether an adapter changes it."""
        return bool(self.pieces or self.blends or self.replaced or self.recoded)

    def sources(self) -> Iterator[Source]:
        """Everything that is read to make it: the base, what replaces it, and the deltas' factors.

        A factor may be a tensor of the base too.
        """
        yield self.source.source
        row = self.computed
        yield row.source.source
        yield from (blend.value.source for blend in row.blends)
        for piece in row.pieces:
            yield from (ref.source for ref in piece.delta.roles.values())

    @property
    def computed(self) -> Row:
        """The row whose values are computed: itself, or the plain weight that it stores."""
        return self if self.recoded is None else self.recoded.plain

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of the tensor seen as a matrix."""
        if not self.shape:
            return 1, 1
        return prod(self.shape[: self.fold]), prod(self.shape[self.fold :])

    def as_json(self) -> dict[str, Any]:
        """The row of the printed plan."""
        body: dict[str, Any] = {
            "tensor": self.name,
            "dtype": self.dtype.name,
            "shape": list(self.shape),
            "file": self.file,
            "offset": self.offset,
            "bytes": self.length,
            "from": {"file": Path(self.source.file).name, "tensor": self.source.name},
        }
        if self.recoded is not None:
            body["recoded"] = {"weight": self.recoded.plain.name, "part": self.recoded.role}
        computed = self.computed
        if computed.pieces:
            body["deltas"] = [
                {
                    "adapter": piece.adapter,
                    "module": piece.delta.module,
                    "tuner": piece.delta.tuner,
                    "scaling": piece.delta.terms.scaling,
                    "weight": piece.weight,
                    "view": piece.view.as_json(),
                }
                for piece in computed.pieces
            ]
        if computed.blends:
            body["replaced_by"] = [blend.as_json() for blend in computed.blends]
        return body


@dataclass(frozen=True, slots=True)
class Recoded:
    """A stored part of a packed weight whose plain values change: `plain` says to what.

    `plain` has no seat of its own; every part of the weight carries the same one.
    """

    role: str
    packed: Packed
    plain: Row


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A weights file of the output: its header is final before the first tensor is written."""

    name: str
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Document:
    """A small file of the output: bytes made here, or a file copied as it is."""

    name: str
    content: bytes | None = None
    copy_of: Path | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a weight-space operation will write.

    `least_retained`: how much of its delta every recoded weight must keep; None: any.
    """

    rows: tuple[Row, ...]
    files: tuple[OutputFile, ...]
    documents: tuple[Document, ...]
    precision: Precision
    findings: tuple[Finding, ...] = ()
    decisions: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    least_retained: float | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all weights files."""
        return sum(file.size for file in self.files)

    @property
    def touched(self) -> int:
        """How many tensors an adapter changes."""
        return sum(row.is_touched for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """The plan as a dry run prints it."""
        return {
            "tensors": [row.as_json() for row in self.rows],
            "files": [{"name": file.name, "bytes": file.size} for file in self.files],
            "documents": [document.name for document in self.documents],
            "precision": str(self.precision),
            "decisions": dict(self.decisions),
            "options": dict(self.options),
        }

    def digest(self) -> str:
        """sha256 of everything that decides the output's bytes, inputs' identities included."""
        digest = hashlib.sha256()
        body = {**self.as_json(), "inputs": [dict(entry) for entry in self.inputs]}
        digest.update(json.dumps(body, sort_keys=True).encode())
        for file in self.files:
            digest.update(file.header)
        for document in self.documents:
            digest.update(document.content or b"")
        return digest.hexdigest()
