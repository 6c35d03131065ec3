"""A base's own tensors, under the names that an adapter has for them."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Adapter, Replaced
from adaptool.model.derived import reshaped, taken, transposed
from adaptool.model.view import View
from adaptool.names.families import head_count, key_value_heads, model_types
from adaptool.names.resolver import Resolution, Resolver
from adaptool.ops.base_norms import with_deltas
from adaptool.ops.replacing import views_of
from adaptool.ops.targets import Base
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.tensors import TensorRef


class BaseTensors:
    """Looks up what a whole tensor of an adapter takes the place of; nothing is read for it."""

    def __init__(self, base: Checkpoint, beside: Adapter) -> None:
        """`beside` is any of the adapters: it tells which layers were repeated."""
        self._name = base.name
        drafts = with_deltas(base, [(replace(beside, deltas=(), replaced=()), 1.0)])
        self._tensors = {name: draft.source for name, draft in drafts.items()}
        kinds = model_types(base.config)
        shapes = {name: ref.shape for name, ref in self._tensors.items()}
        heads = head_count(base.config), key_value_heads(base.config)
        self._base = Base(shapes, kinds, *heads)
        self._resolver = Resolver(self._tensors, kinds)

    def like(self, item: Replaced) -> TensorRef | None:
        """The base's tensor for `item`, all rows of it, as the adapter lays it out.

        None where the base has none. MismatchError where it is stored in a way that cannot be
        brought into the adapter's form.
        """
        found = self._resolver.resolve(
            item.parameter, lambda tensor: self._base.shapes[tensor] == item.value.shape
        )
        return None if found is None else self._taken(item, found)

    def _taken(self, item: Replaced, found: Resolution) -> TensorRef:
        placement = found.placements[0]
        partial = placement.of_parameter or placement.of_tensor or placement.unsupported
        if len(found.placements) == 1 and not (found.fused or partial):
            return self._tensors[placement.tensor]
        places = list(views_of(item, found, self._base)) if item.rows is None else []
        if len(places) != 1 or len(item.value.shape) > 2:
            message = f"{self._name} stores this tensor in another form, in parts or in a stack"
            hint = "merge them one after the other: merge BASE A OUT --add B"
            raise MismatchError(message, code=Code.UNSUPPORTED, tensor=item.parameter, hint=hint)
        (name, view), *_ = places
        return reshaped(_cut(self._tensors[name], view), item.value.shape)


def _cut(ref: TensorRef, view: View) -> TensorRef:
    """The elements of a tensor of the base that the view names, in the adapter's order."""
    rows = prod(ref.shape[: view.fold])
    matrix = reshaped(ref, (rows, ref.elements // rows))
    matrix = taken(taken(matrix, view.rows, axis=0), view.columns, axis=1)
    return transposed(matrix) if view.transposed else matrix
