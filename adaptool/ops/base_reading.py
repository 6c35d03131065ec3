"""How an adapter is read beside a base: with its names, shapes and config."""

from __future__ import annotations

from adaptool.model.reading import BaseNames
from adaptool.store.checkpoint import Checkpoint


def names_of(base: Checkpoint | None) -> BaseNames | None:
    """What a layout may know of the base; None where there is none."""
    if base is None:
        return None
    return BaseNames({name: ref.shape for name, ref in base.tensors.items()}, base.config)
