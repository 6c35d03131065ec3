"""A plan cut into stretches, so that only a part of the inputs and outputs must be here at a time.

Sources that are brought here for a while (`Visiting`) are needed by the rows of one stretch; those
of the next one are brought while it is computed. Where everything is here anyway, all rows are one
stretch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self

from adaptool.errands import Errands
from adaptool.model.plan import Plan, Row
from adaptool.store.source import Visiting, visited

Visits = tuple[Visiting, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows that are filled together: the files they open, and the sources they must have here."""

    rows: tuple[Row, ...]
    opens: tuple[str, ...]
    visits: Visits = ()


def stretches(plan: Plan, *, hands_over: bool = False) -> tuple[Stretch, ...]:
    """The plan's rows, cut where other sources must be here.

    With `hands_over` also where another file begins: a finished one leaves.
    """
    known: dict[int, Visits] = {}
    needs = [_needs(row, known) for row in plan.rows]
    if not hands_over and not any(needs):
        return (Stretch(plan.rows, tuple(file.name for file in plan.files)),)
    places = _in_order(plan)
    cut = _cuts(plan.rows, needs, places, hands_over=hands_over)
    return tuple(_stretches(plan, needs, places, cut))


def _needs(row: Row, known: dict[int, Visits]) -> Visits:
    """What must be here for this row."""
    found: dict[int, Visiting] = {}
    for source in row.sources():
        if id(source) not in known:
            known[id(source)] = tuple(visited(source))
        found.update({id(each): each for each in known[id(source)]})
    return tuple(found.values())


def _in_order(plan: Plan) -> list[int]:
    """The places of the rows, ordered by their seats."""
    rank = {file.name: place for place, file in enumerate(plan.files)}
    rows = plan.rows
    return sorted(range(len(rows)), key=lambda at: (rank[rows[at].file], rows[at].offset))


def _cuts(
    rows: Sequence[Row], needs: Sequence[Visits], places: Sequence[int], *, hands_over: bool
) -> list[int]:
    """Where (in `places`) a stretch begins.

    The parts of a packed weight are computed at once: nothing is cut between them.
    """
    begins = [0] if places else []
    here = {id(each) for each in needs[places[0]]} if places else set()
    for at in range(1, len(places)):
        needed = {id(each) for each in needs[places[at]]}
        another_file = rows[places[at]].file != rows[places[at - 1]].file
        if not needed <= here or (hands_over and another_file):
            begins.append(at)
            here = needed
    spans: dict[str, tuple[int, int]] = {}
    for at, place in enumerate(places):
        recoded = rows[place].recoded
        if recoded is not None:
            first, _ = spans.get(recoded.plain.name, (at, at))
            spans[recoded.plain.name] = (first, at)
    return [at for at in begins if not any(first < at <= last for first, last in spans.values())]


def _stretches(
    plan: Plan, needs: Sequence[Visits], places: Sequence[int], begins: Sequence[int]
) -> Iterator[Stretch]:
    left = [file.name for file in plan.files]
    for start, stop in zip(begins, [*begins[1:], len(places)], strict=True):
        rows = tuple(plan.rows[place] for place in places[start:stop])
        visits = {id(each): each for place in places[start:stop] for each in needs[place]}
        last = stop == len(places)
        opened = len(left) if last else max(_place(left, row.file) for row in rows) + 1
        yield Stretch(rows, tuple(left[:opened]), tuple(visits.values()))
        del left[:opened]


def _place(left: Sequence[str], file: str) -> int:
    """Where a file stands among those not opened yet; -1 where it is open."""
    return left.index(file) if file in left else -1


class Visitors:
    """Brings the sources of each stretch, and those of the next one meanwhile."""

    def __init__(self, all_stretches: Sequence[Stretch]) -> None:
        """Nothing is brought yet."""
        self._stretches = all_stretches
        self._last: dict[int, int] = {}
        self._sent_for: dict[int, tuple[Visiting, Future[None]]] = {}
        self._errands = Errands[None]("adaptool-arrival")
        for place, stretch in enumerate(all_stretches):
            self._last.update({id(each): place for each in stretch.visits})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._errands.close()
        for visiting, _arrival in self._sent_for.values():
            visiting.leave()  # breaks off what is on its way

    def bring(self, place: int) -> None:
        """Wait until the sources of stretch `place` are here; those of earlier ones leave."""
        for key in [key for key in self._sent_for if self._last[key] < place]:
            visiting, _ = self._sent_for.pop(key)
            visiting.leave()
        wanted = self._stretches[place].visits
        self._send_for(wanted)
        for each in wanted:
            _, arrival = self._sent_for[id(each)]
            arrival.result()
        if place + 1 < len(self._stretches):
            self._send_for(self._stretches[place + 1].visits)

    def _send_for(self, visits: Visits) -> None:
        for each in visits:
            if id(each) not in self._sent_for:
                self._sent_for[id(each)] = (each, self._errands.send(each.arrive))
