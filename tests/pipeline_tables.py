"""The tables of diffusion models as modules with sizes, and as a base that has all of them."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.model.reading import BaseNames, Reading
from adaptool.names.diffusion import Family, Seat

UNIT = 8
# Names of processors in XLabs' files, which stand for modules of other names.
_ELSEWHERE = ("distilled_guidance_layer", "processor", "norm")


def seats_of(family: Family) -> Iterator[Seat]:
    """One seat for each line of a table."""
    for rule in family.rules:
        if not any(word in rule.original for word in _ELSEWHERE):
            seat = family.by_original(rule.original.replace("#", "1"))
            assert seat is not None
            yield seat


def sizes_of(seat: Seat) -> dict[str, tuple[int, int]]:
    """Of diffusers' modules: a fused one's first part has as many outputs as inputs."""
    shares = seat.rule.shares
    inner = UNIT * shares[0]
    if seat.rule.ratio is not None:
        out, inner = (UNIT * number for number in seat.rule.ratio)
        return {seat.modules[0]: (out, inner)}
    return {m: (UNIT * share, inner) for m, share in zip(seat.modules, shares, strict=True)}


def fused_size(seat: Seat) -> tuple[int, int]:
    """Outputs and inputs of the checkpoint's module."""
    sizes = list(sizes_of(seat).values())
    return sum(out for out, _ in sizes), sizes[0][1]


def base_of(family: Family) -> Reading:
    """A whole checkpoint of its own names."""
    shapes = {f"{seat.original}.weight": fused_size(seat) for seat in seats_of(family)}
    return Reading(base=BaseNames(shapes, None))
