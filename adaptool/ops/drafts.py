"""Output tensors in the making: the base's, changed step by step until they become plan rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from adaptool.dtypes import Dtype
from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.plan import Blend, Piece, Recoded
from adaptool.store.tensors import TensorRef


@dataclass(slots=True)
class Draft:
    """One output tensor.

    `file` is the base shard it lies in, None for a tensor the base lacks; `dtype` is what will be
    written. `replaced_by` is the adapter whose own tensor `source` became; the base's is then
    `original`. `virtual` marks a name of tied weights that the base does not store. `stored`: a
    part of a packed weight, whose dtype is the scheme's; `recoded`: one that is made anew.
    """

    name: str
    source: TensorRef
    file: str | None
    dtype: Dtype
    pieces: list[Piece] = field(default_factory=list)
    blends: list[Blend] = field(default_factory=list)
    fold: int = 1
    replaced_by: int | None = None
    original: TensorRef | None = None
    virtual: bool = False
    stored: bool = False
    recoded: Recoded | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that will be written."""
        return self.source.shape

    @property
    def is_touched(self) -> bool:
        """Whether an adapter changes it."""
        return bool(self.pieces or self.blends) or self.replaced_by is not None

    def see_as(self, fold: int) -> None:
        """As a matrix with `fold` axes as rows; MismatchError where it is seen in another way."""
        seen = self.pieces or any(blend.view is not None for blend in self.blends)
        if seen and self.fold != fold:
            message = "two deltas see this tensor in different shapes"
            raise MismatchError(message, code=Code.UNSUPPORTED, tensor=self.name)
        self.fold = fold

    def replace(self, value: TensorRef, adapter: int) -> None:
        """The adapter's tensor takes the place of the base's, which is kept for a second one."""
        self.original = self.source
        self.source, self.replaced_by = value, adapter

    def restore(self) -> None:
        """Take the base's tensor again."""
        if self.original is not None:
            self.source, self.replaced_by, self.original = self.original, None, None

    def take_source(self, other: Draft) -> None:
        """The whole tensor of another name, replaced or not."""
        self.source, self.replaced_by, self.original = (
            other.source,
            other.replaced_by,
            other.original,
        )

    def take_changes(self, other: Draft) -> None:
        """Add what another name of the tensor has and this one has not."""
        if other.pieces:
            self.see_as(other.fold)
        self.pieces += [piece for piece in other.pieces if piece not in self.pieces]
        self.blends += [blend for blend in other.blends if blend not in self.blends]

    def brought(self) -> set[str]:
        """Names of the adapters' tensors that it is made of."""
        refs = [ref for piece in self.pieces for ref in piece.delta.roles.values()]
        refs += [blend.value for blend in self.blends]
        refs += [self.source] if self.replaced_by is not None else []
        return {ref.name for ref in refs}

    def share(self) -> None:
        """A second adapter mixes in: the first one's tensor becomes a blend as well."""
        if self.replaced_by is None or self.original is None:
            return
        self.blends.insert(0, Blend(self.replaced_by, self.source, 1.0))
        self.restore()


Drafts = dict[str, Draft]


def drafts_of(tensors: Mapping[str, TensorRef], files: Iterable[tuple[str, str]]) -> Drafts:
    """A draft per base tensor, in the base's order; `files` are (tensor name, shard) pairs."""
    return {name: Draft(name, tensors[name], file, tensors[name].dtype) for name, file in files}
