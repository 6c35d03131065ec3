"""A base's own tensors, under the names that an adapter has for them."""

from __future__ import annotations

from collections.abc import Sequence

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Replaced
from adaptool.model.derived import joined, taken, transposed
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

    def __init__(self, base: Checkpoint, replication: Sequence[tuple[int, int]] = ()) -> None:
        """`replication` is the adapters' `layer_replication`."""
        self._name = base.name
        drafts = with_deltas(base, (), replication)
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
            item.parameter, lambda name: self._base.shapes[name] == item.value.shape
        )
        if found is None:
            return None
        if _is_whole(found):
            return self._tensors[found.placements[0].tensor]
        places = list(views_of(item, found, self._base))
        if len(places) == 1 and len(item.value.shape) <= 2:
            name, view = places[0]
            return _cut(self._tensors[name], view)
        message = f"{self._name} stores this tensor in pieces, which are not put together here"
        raise MismatchError(message, code=Code.UNSUPPORTED, tensor=item.parameter)
