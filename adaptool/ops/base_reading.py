"""How an adapter is read beside a base: with its names, shapes and config."""

from __future__ import annotations

from adaptool.model.reading import AS_IT_STANDS, BaseNames, Reading
from adaptool.store.checkpoint import Checkpoint


def reading_with(base: Checkpoint | None) -> Reading:
    """A reading that knows the base; one that says nothing where there is none."""
    if base is None:
        return AS_IT_STANDS
    shapes = {name: ref.shape for name, ref in base.tensors.items()}
    return Reading(base=BaseNames(shapes, base.config))
