"""`hf://owner/name[@revision][/subfolder]`, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.store.safe_names import is_safe, printable

SCHEME = "hf://"
_SCHEME_AS_PATH = "hf:/"  # pathlib makes one slash of two
_FORM = "hf://owner/name[@revision][/subfolder]"
# Revisions that hold slashes. Source: huggingface_hub 2.4, `SPECIAL_REFS_REVISION_REGEX`.
_URI = re.compile(
    r"hf://(?:models/)?(?P<owner>[\w.-]{1,96})/(?P<name>[\w.-]{1,96})"
    r"(?:@(?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^/@\s]{1,255}))?"
    r"(?:/(?P<folder>[^\0]+))?",
    re.ASCII,
)
_PINNED = re.compile(r"[0-9a-f]{40}")
_OTHER_KINDS = frozenset({"datasets", "spaces", "buckets", "kernels"})


@dataclass(frozen=True, slots=True)
class HubUri:
    """A place in a model repository; `revision` is None for the default branch.

    `folder` is a path in it, a folder or one file; empty for all of it.
    """

    repo: str
    revision: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The place that `text` names; UsageError (exit 2) where it is no such URI."""
        match = _URI.fullmatch(text.rstrip("/"))
        if match is None or match["owner"] in _OTHER_KINDS or not _is_repo(match):
            message = f"is no repository of a model; write {_FORM}"
            raise UsageError(message, code=Code.USAGE, file=printable(text, most=200))
        folder = match["folder"] or ""
        if folder and not is_safe(folder):
            message = f"{printable(folder, most=200)!r} is no path in a repository"
            raise UsageError(message, code=Code.USAGE, file=printable(text, most=200))
        return cls(f"{match['owner']}/{match['name']}", match["revision"], folder)

    @property
    def pinned(self) -> bool:
        """Whether the revision is a whole commit hash, which nobody can move."""
        return self.revision is not None and _PINNED.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}{'/' + self.folder if self.folder else ''}"


def _is_repo(match: re.Match[str]) -> bool:
    """The Hub's own rules: no dot or dash at either end, no two of them in a row."""
    parts = (match["owner"], match["name"])
    return not any(
        part[0] in ".-" or part[-1] in ".-" or ".." in part or "--" in part for part in parts
    )


def hub_uri(path: Path) -> str | None:
    """The `hf://` address that `path` was made of, None for a path of this machine."""
    text = str(path)
    if not text.startswith(_SCHEME_AS_PATH):
        return None
    return SCHEME + text.removeprefix(_SCHEME_AS_PATH)


def as_written(path: Path) -> str:
    """The path or address as the user wrote it."""
    return hub_uri(path) or str(path)
