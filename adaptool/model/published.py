"""Where an output is: a path of this machine, or a commit on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaptool.store.addresses import as_written


@dataclass(frozen=True, slots=True)
class Published:
    """Where an output went that was sent to the Hub: its commit, and the page that shows it."""

    commit: str
    url: str


def destination(out: Path, published: Published | None) -> dict[str, str]:
    """The keys that say where an output is: `out`, and on the Hub its `commit` and `url`."""
    if published is None:
        return {"out": as_written(out)}
    return {"out": as_written(out), "commit": published.commit, "url": published.url}


def shown(out: Path, published: Published | None) -> str:
    """OUT as it was written, on the Hub with the page of the commit."""
    return as_written(out) if published is None else f"{as_written(out)} at {published.url}"
