"""Memory for tensors that a tuner needs whole, granted before the first is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from adaptool.errors import ResourceError
from adaptool.findings import Code
from adaptool.model.plan import Row
from adaptool.tuners import tuners

# The rest is for tiles, factors, torch and everybody else.
SHARE = 0.75
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def admitted(rows: Iterable[Row], threads: int) -> int:
    """How many threads may work at once: each may hold one tensor whole.

    ResourceError where the largest does not fit alone. Tensors that are computed tile by tile
    need nothing.
    """
    needs = {row.name: needed(row) for row in rows if row.pieces}
    if not any(needs.values()):
        return threads
    name = max(needs, key=lambda found: needs[found])
    budget = memory_budget()
    if needs[name] > budget:
        message = f"its update needs all of it at once, {needs[name]} bytes; {budget} may be used"
        hint = "use a machine with more memory"
        raise ResourceError(message, code=Code.OUT_OF_MEMORY, tensor=name, hint=hint)
    return max(1, min(threads, budget // needs[name]))


def needed(row: Row) -> int:
    """Bytes that the row's updates hold beyond a tile."""
    return sum(
        tuners()[piece.delta.tuner].DECLARATION.bytes_needed(piece.view) for piece in row.pieces
    )


def memory_budget() -> int:
    """Three quarters of what this process may use: the machine's memory, or its container's."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = CGROUP_LIMIT.read_text().strip()
    except OSError:
        limit = ""
    return int(SHARE * min(total, int(limit) if limit.isdigit() else total))
