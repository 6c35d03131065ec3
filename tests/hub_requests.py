"""What the stand-in of the Hub is made of: requests, replies, repositories, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".unmerge")


@dataclass(frozen=True)
class Refuse:
    """Answers with a status instead."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """Promises the whole body, sends `after` bytes of it and closes the connection."""

    after: int = 0


@dataclass(frozen=True)
class Corrupt:
    """Sends a body of the right size with its last byte changed."""


@dataclass(frozen=True)
class Lose:
    """Does what was asked for and closes the connection without an answer."""


@dataclass(frozen=True)
class Before:
    """Does something on the server first: moves a branch, stops a process, waits for an event."""

    step: Callable[[], object]


Fault = Refuse | Drop | Corrupt | Lose | Before


@dataclass(frozen=True)
class Request:
    """What a client asked for; names of headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Repo:
    """A repository: `commits` are whole trees, path to content."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit with exactly these files at the head of `branch`."""
        seed = repr((len(self.commits), branch, sorted(files))).encode()
        oid = hashlib.sha1(seed, usedforsecurity=False).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        return oid

    @property
    def head(self) -> str:
        """The commit of main."""
        return self.branches["main"]

    @property
    def files(self) -> dict[str, bytes]:
        """What main holds."""
        return self.commits[self.head]


def json_reply(body: Any, status: int = 200, **headers: str) -> Reply:
    """An answer in JSON; names of headers with underscores."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **names})


def missing(what: str) -> Reply:
    """What the Hub answers where there is no such thing: RepoNotFound and the like."""
    return json_reply({"error": f"{what} not found"}, 404, X_Error_Code=what)


def blob_oid(content: bytes) -> str:
    """git's name of a file."""
    framed = f"blob {len(content)}\0".encode() + content
    return hashlib.sha1(framed, usedforsecurity=False).hexdigest()


def sha256_of(content: bytes) -> str:
    """What LFS calls a file; a sparse one (tests/hub_sparse.py) says it of itself."""
    known = getattr(content, "sha256", None)
    return known if isinstance(known, str) else hashlib.sha256(content).hexdigest()


def is_lfs(path: str) -> bool:
    """Whether the Hub keeps such a file in LFS."""
    return path.endswith(LFS_SUFFIXES)
