"""What a tuner declares and what its file offers; the seam between engine and tuners.

A tuner is a module of `adaptool.tuners`: its file name is its name, and being there registers it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from adaptool.model.adapter import Delta, Replaced, Terms
from adaptool.model.view import View
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

INPUTS, OUTPUTS = "inputs", "outputs"


@dataclass(frozen=True, slots=True)
class Declaration:
    """What is true of a tuner, known without torch.

    `peft_type` is PEFT's name for the config that carries it, `formerly` an earlier one; `keys`
    maps a PEFT key's ending (after the module path) to the role it fills, `shared` the names of
    tensors that all modules have in common (after `base_model.`). `{}` in either stands for one
    part of the name, which takes the place of `{}` in the role: `peanut_encoders.{}.weight` ->
    `encoder.{}`. A module's tensors belong to the tuner when they hold all `required` roles and no
    role it does not know. `indices` are roles that hold whole numbers, `frozen` those that were
    not trained (random projections); `may_be_empty`: a tensor without elements is a module that
    was pruned away.

    `additive`: f(W) - W does not depend on W. `low_rank`: the delta is a product of two thin
    factors, which `product_factors` gives; without `sizes_told`, which is whether its tensors tell
    how large a layer is, that takes the base. `mixes` are the axes along which an element of f(W)
    depends on others of W; where one of them runs over the rows of the base's tensor, all of it
    is needed at once and `workspace` is how many matrices of its size, in float64, that takes.
    `invertible`: "exactly", "rounding" or "no".

    `proportional` are roles of which a module has one: twice its numbers are twice the scaling.

    `init` is the `init_lora_weights`, `switch` the config field, that makes its update another
    one than the plain tuner's. `cuts_base`: training began by taking a part out of the base's
    tensor itself, under every name that it has.
    """

    title: str
    peft_type: str
    keys: Mapping[str, str]
    required: frozenset[str]
    additive: bool
    low_rank: bool
    invertible: str
    init: str = ""
    switch: str = ""
    cuts_base: bool = False
    shared: Mapping[str, str] = field(default_factory=dict)
    indices: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    may_be_empty: bool = False
    sizes_told: bool = True
    mixes: frozenset[str] = frozenset()
    workspace: int = 0
    formerly: str = ""
    proportional: tuple[str, ...] = ()

    @property
    def tile(self) -> str:
        """What of a linear weight (out, in) is needed at once: "any" part, "rows" or "whole"."""
        if OUTPUTS in self.mixes:
            return "whole"
        return "rows" if self.mixes else "any"

    def serves(self, peft_type: str) -> bool:
        """Whether a config of that type carries it."""
        return bool(peft_type) and peft_type in (self.peft_type, self.formerly)

    def as_json(self) -> dict[str, Any]:
        """What is true of the tuner, as `inspect` shows it."""
        return {
            "title": self.title,
            "additive": self.additive,
            "low_rank": self.low_rank,
            "tile": self.tile,
            "invertible": self.invertible,
            "workspace": self.workspace,
        }

    def knows(self, role: str) -> bool:
        """Whether one of its tensors can fill `role`."""
        named = (*self.keys.values(), *self.shared.values())
        return any(_pattern(template).fullmatch(role) for template in named)

    def is_index(self, role: str) -> bool:
        """Whether the tensors of `role` hold whole numbers."""
        return _is_one_of(role, self.indices)

    def is_trained(self, role: str) -> bool:
        """Whether training made the numbers of `role`: neither indices nor frozen projections."""
        return not _is_one_of(role, self.frozen | self.indices)

    def bytes_needed(self, view: View) -> int:
        """Memory for all of W under `view`; 0 where it is computed tile by tile."""
        over_rows = INPUTS if view.transposed else OUTPUTS
        if over_rows not in self.mixes:
            return 0
        return self.workspace * 8 * view.rows.count * view.columns.count


def role_of(keys: Mapping[str, str], name: str) -> str | None:
    """The role that `name` fills among `keys`, as `Declaration.keys` has them; None for none."""
    found = keys.get(name)
    if found is not None:
        return found
    for template, role in keys.items():
        match = _pattern(template).fullmatch(name) if "{}" in template else None
        if match:
            return role.replace("{}", match[1])
    return None


def _is_one_of(role: str, templates: frozenset[str]) -> bool:
    return role in templates or any(
        "{}" in template and _pattern(template).fullmatch(role) for template in templates
    )


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{\}", "([^.]+)"))


@dataclass(frozen=True, slots=True)
class Effect:
    """What one module's tensors do to one parameter of the layer.

    `parameter` is "weight" or "bias"; `roles` the tensors it takes; `tuner` another one that does
    the work ("": the same). `optional` and `reads` as in `Delta`, but that `reads` names a
    parameter of the same layer.
    """

    parameter: str
    roles: frozenset[str]
    terms: Terms
    tuner: str = ""
    optional: bool = False
    reads: Mapping[str, str] = field(default_factory=dict)


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

        `exact` is float64 arithmetic; without it the order of operations is PEFT's. Roles of
        `DECLARATION.indices` that hold whole numbers keep their dtype.
        """
        ...


@runtime_checkable
class LowRank(Protocol):
    """What a tuner that declares `low_rank` offers besides."""

    def product_factors(
        self, factors: Mapping[str, torch.Tensor], terms: Terms, expert: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(out, r) and (r, in * kernel) whose product is the unscaled delta of one matrix.

        InputError (UNSUPPORTED) where that needs a size that only a base tells.
        """
        ...


@runtime_checkable
class Spreading(Protocol):
    """What a tuner offers whose tensors do not change the layer's weight alone."""

    def effects(self, terms: Terms, shapes: Mapping[str, tuple[int, ...]]) -> Sequence[Effect]:
        """What the tensors of one module change."""
        ...


@runtime_checkable
class Settling(Protocol):
    """What a tuner offers whose terms depend on the base or on the adapter's other modules."""

    def settled(self, delta: Delta, among: Sequence[Delta]) -> Terms:
        """The delta's terms, now that its sizes are known.

        `among` are all deltas of the tuner, in the file's order; those that found no place in the
        base have sizes of 0 left. MismatchError where the base does not do.
        """
        ...


@runtime_checkable
class Carrying(Protocol):
    """What a tuner offers, in place of terms, whose tensors take the place of the base's."""

    def carried(
        self, config: Mapping[str, Any], module: str, roles: Mapping[str, TensorRef]
    ) -> Sequence[Replaced]:
        """The whole tensors, or rows, that one module brings; InputError where they clash."""
        ...
