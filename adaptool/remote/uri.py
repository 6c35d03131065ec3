"""`hf://owner/name[@revision][/subfolder]`, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from adaptool.errors import MismatchError, UsageError
from adaptool.findings import Code
from adaptool.store.addresses import SCHEME, as_written, hub_uri
from adaptool.store.safe_names import is_safe, printable

_FORM = "hf://owner/name[@revision][/subfolder]"
# Revisions that hold slashes. Source: huggingface_hub 2.4, `SPECIAL_REFS_REVISION_REGEX`.
_URI = re.compile(
    r"hf://(?:models/)?(?P<owner>[\w.-]{1,96})/(?P<name>[\w.-]{1,96})"
    r"(?:@(?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^/@\s]{1,255}))?"
    r"(?:/(?P<folder>[^\0]+))?",
    re.ASCII,
)
_SPECIAL = re.compile(r"refs/(?:pr|convert)/.+")
_REVISION = re.compile(r"(?!.*\.\.)[^\s\x00-\x1f\x7f]{1,255}")  # git forbids two dots in a row, too
_PINNED = re.compile(r"[0-9a-f]{40}")
_OTHER_KINDS = frozenset({"datasets", "spaces", "buckets", "kernels"})


@dataclass(frozen=True, slots=True)
class HubUri:
    """A place in a model repository; `revision` is None for the default branch.

    `folder` is a path in it, a folder or one file; empty for all of it. A slash in a branch's name
    is written `%2F`, as huggingface_hub does.
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
        revision = None if match["revision"] is None else unquote(match["revision"])
        if revision is not None and not _REVISION.fullmatch(revision):
            message = f"{printable(revision, most=200)!r} is no name of a branch, tag or commit"
            raise UsageError(message, code=Code.USAGE, file=printable(text, most=200))
        return cls(f"{match['owner']}/{match['name']}", revision, folder)

    @property
    def name(self) -> str:
        """What the artifact is called: the folder or file, else the repository, without a path."""
        return (self.folder or self.repo).rpartition("/")[2]

    @property
    def pinned(self) -> bool:
        """Whether the revision is a whole commit hash, which nobody can move."""
        return self.revision is not None and _PINNED.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        revision = f"@{_written(self.revision)}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}{'/' + self.folder if self.folder else ''}"


def check_local(path: Path) -> None:
    """MismatchError (exit 4) for an address where only a path of this machine can stand."""
    if hub_uri(path) is not None:
        message = "only a path of this machine can stand here"
        hint = "pull downloads from hf:// addresses, push sends there"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=as_written(path), hint=hint)


def _written(revision: str) -> str:
    """The revision as an address has it."""
    if _SPECIAL.fullmatch(revision):
        return revision
    return revision.replace("%", "%25").replace("/", "%2F")


def _is_repo(match: re.Match[str]) -> bool:
    """The Hub's own rules: no dot or dash at either end, no two of them in a row."""
    parts = (match["owner"], match["name"])
    return not any(
        part[0] in ".-" or part[-1] in ".-" or ".." in part or "--" in part for part in parts
    )
