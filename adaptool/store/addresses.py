"""`hf://` addresses as they travel in paths, and what can be a name on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

SCHEME = "hf://"
_SCHEME_AS_PATH = "hf:/"  # pathlib makes one slash of two
_ON_THE_HUB = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def hub_uri(path: Path) -> str | None:
    """The `hf://` address that `path` was made of, None for a path of this machine."""
    text = str(path)
    if not text.startswith(_SCHEME_AS_PATH):
        return None
    return SCHEME + text.removeprefix(_SCHEME_AS_PATH)


def as_written(path: Path) -> str:
    """The path or address as the user wrote it."""
    return hub_uri(path) or str(path)


def on_the_hub(name: str) -> bool:
    """Whether this can be the name of a repository; a trainer's local path cannot."""
    return _ON_THE_HUB.fullmatch(name) is not None and not name.startswith(".")
