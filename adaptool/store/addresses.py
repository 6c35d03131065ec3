"""`hf://` addresses as they travel in paths and texts, and what can be a name on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

SCHEME = "hf://"
_SCHEME_AS_PATH = "hf:/"  # pathlib makes one slash of two
_REVISION = re.compile(r"^@(?:refs/(?:pr|convert)/)?[^/]+")
_AFTER_NAME = re.compile("[@:/]")
_ON_THE_HUB = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def is_address(text: str) -> bool:
    """Whether `text`, as the user wrote it, is an address on the Hub."""
    return text.startswith(SCHEME)


def repository_of(address: str) -> str:
    """`owner/name` of an address; what follows it (@revision, /folder, : file) is not looked at."""
    owner, _, rest = address.removeprefix(SCHEME).partition("/")
    return f"{owner}/{_AFTER_NAME.split(rest, maxsplit=1)[0]}"


def at_commit(address: str, commit: str) -> str:
    """The address with this commit in place of the revision; its folder stays."""
    repository = repository_of(address)
    rest = address.removeprefix(f"{SCHEME}{repository}")
    return f"{SCHEME}{repository}@{commit}{_REVISION.sub('', rest, count=1)}"


def hub_uri(path: Path) -> str | None:
    """The `hf://` address that `path` was made of, None for a path of this machine."""
    text = str(path)
    if f"{text}/" == _SCHEME_AS_PATH:
        return SCHEME
    if not text.startswith(_SCHEME_AS_PATH):
        return None
    return SCHEME + text.removeprefix(_SCHEME_AS_PATH)


def as_written(path: Path) -> str:
    """The path or address as the user wrote it."""
    return hub_uri(path) or str(path)


def on_the_hub(name: str) -> bool:
    """Whether this can be the name of a repository; a trainer's local path cannot."""
    return _ON_THE_HUB.fullmatch(name) is not None and not name.startswith(".")
