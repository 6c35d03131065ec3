"""How an adapter's names for parameters are understood, beside a base or without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from adaptool.model.adapter import Delta
from adaptool.model.reading import BaseNames
from adaptool.names.model_names import Home, ModelNames
from adaptool.ops.targets import plausible


@dataclass(frozen=True, slots=True)
class Naming:
    """How parameters are found and called; `experts`: how many a stack holds, 0 if unknown.

    `types` are those of the model's family, `bare` cuts the prefix that a model with a head has.
    """

    home: Callable[[str, Delta | None], Home | None]
    experts: Callable[[str], int]
    types: frozenset[str]
    bare: Callable[[str], str] = field(default=str)


def beside(base: BaseNames) -> Naming | None:
    """As the base's modules are called; None where its family is not known."""
    names = ModelNames(base.shapes, base.config)
    if not names.is_known:
        return None

    def home(parameter: str, delta: Delta | None) -> Home | None:
        def fits(tensor: str) -> bool:
            return delta is not None and plausible(delta, base.shapes.get(tensor, ()))

        return names.home(parameter, fits)

    def experts(parameter: str) -> int:
        pieces = names.parameters.get(parameter, ())
        if len(pieces) == 1 and not pieces[0].of_parameter:
            return base.shapes[pieces[0].tensor][0]
        return len({part.index for each in pieces for part in each.of_parameter if part.dropped})

    return Naming(home, experts, frozenset(names.types), names.bare)
