"""Where deltas go in layouts of diffusion models, whose names differ between architectures.

An adapter may be for several architectures. A layout has one name for a module where all of them
say the same; where they do not, the module is contested, and only the base tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from adaptool.layouts.pipeline_families import tables_of
from adaptool.model.adapter import Adapter, Delta
from adaptool.names.diffusion import Family, Seat


@dataclass(frozen=True, slots=True)
class Home:
    """Where a delta goes: the stored module's name, and which part of a seat the delta is."""

    name: str
    seat: Seat | None = None
    part: int = 0

    @property
    def meaning(self) -> tuple[object, ...]:
        """What two architectures must agree on: the name there, and which of its rows these are."""
        if self.seat is None:
            return self.name, self.part
        rule = self.seat.rule
        return self.name, self.part, self.seat.modules, rule.shares, rule.swap, rule.pair_only


@dataclass(frozen=True, slots=True)
class Homes:
    """Module -> home, and why some modules have none."""

    found: Mapping[str, Home]
    missing: Mapping[str, str] = field(default_factory=dict)


def homes_of(adapter: Adapter, home: Callable[[Delta, Family | None], Home | None]) -> Homes:
    """The homes of an adapter's modules; `home` gives one architecture's, None for no home.

    Of two modules that would share one home (two denoisers of one pipeline) the first has it.
    """
    tables = tables_of(adapter.architectures)
    found: dict[str, Home] = {}
    missing: dict[str, str] = {}
    for delta in adapter.deltas:
        each = [home(delta, table) for table in tables]
        if len({one and one.meaning for one in each}) > 1:
            missing[delta.module] = _contested(adapter)
        elif each[0] is not None:
            found[delta.module] = each[0]
    missing |= _shared(found)
    return Homes({m: h for m, h in found.items() if m not in missing}, missing)


def _contested(adapter: Adapter) -> str:
    names = ", ".join(adapter.architectures)
    return f"these module names are those of {names}: --base CHECKPOINT tells whose"


def _shared(found: Mapping[str, Home]) -> dict[str, str]:
    taken: dict[tuple[str, int], str] = {}
    missing = {}
    for module, home in found.items():
        first = taken.setdefault((home.name, home.part), module)
        if first != module:
            missing[module] = (
                f"it has one name, {home.name}, for {first} and for {module}: two models of a "
                "pipeline need two files"
            )
    return missing
