"""What a tuner declares and what its file offers; the seam between engine and tuners.

A tuner is a module of `adaptool.tuners`: its file name is its name, and being there registers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from adaptool.model.adapter import Terms
from adaptool.model.view import View

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Declaration:
    """What is true of a tuner, known without torch.

    `peft_type` is PEFT's name for the config that carries it; `keys` maps a PEFT key's ending
    (after the module path) to the role it fills; a module's keys belong to the tuner when they
    hold all `required` roles and no role it does not know. `additive`: f(W) - W does not depend
    on W. `low_rank`: the delta is a product of two thin factors. `invertible`: "exactly",
    "rounding" or "no". `init` is the `init_lora_weights` that makes its update another one than
    the plain tuner's.
    """

    title: str
    peft_type: str
    keys: Mapping[str, str]
    required: frozenset[str]
    additive: bool
    low_rank: bool
    invertible: str
    init: str = ""


class Update(Protocol):
    """A delta made ready for one view: adds `weight * (f(W) - W)` tile by tile.

    Rows and columns are those the view takes, so an update never sees a path or a device name.
    """

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:
        """Add the update of `rows` to `out` (rows, columns); `base` holds the unmerged values.

        `base` may be `out` itself for an additive tuner.
        """
        ...


@runtime_checkable
class Observing(Update, Protocol):
    """An update that must see all of W before the first tile (column norms)."""

    def observe(self, base: torch.Tensor, rows: slice) -> None:
        """Take in rows of W, in order, in blocks of a fixed height."""
        ...

    def settle(self) -> None:
        """All of W has been seen."""
        ...


class Tuner(Protocol):
    """What a tuner's file offers."""

    DECLARATION: Declaration

    def terms(
        self, config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> Terms:
        """Read scaling, shapes and conventions of one module; InputError where they clash."""
        ...

    def prepare(
        self,
        factors: Mapping[str, torch.Tensor],
        terms: Terms,
        view: View,
        weight: float,
        exact: bool,
    ) -> Update:
        """Make the update for one view; `factors` by role, in the arithmetic's dtype.

        `exact` is float64 arithmetic; without it the order of operations is PEFT's.
        """
        ...
