"""The Hub through its own client: revisions, trees and streams of bytes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from adaptool.errors import RemoteError
from adaptool.findings import Code
from adaptool.remote.failures import told

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

ATTEMPTS = 6
"""How often in a row the same may fail without progress."""

LONGEST_WAIT = 60.0
"""Seconds that a Retry-After may ask for before the run ends and leaves the wait to the caller."""

_TIMEOUT = 60.0
_REFUSED_FOR_NOW = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a commit: its size in bytes, git's `oid` of it, and its sha256 if it is in LFS."""

    path: str
    size: int
    oid: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class RepoState:
    """A repository as one request saw it."""

    commit: str
    private: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """Where files come from: a repository at one commit; `place` is what errors call it."""

    api: HfApi
    repo: str
    commit: str
    place: str


@contextmanager
def quiet() -> Iterator[None]:
    """The client logs each retry with its address on stderr; errors say what matters."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger = logging.getLogger("huggingface_hub")
    level, bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()


def client() -> HfApi:
    """The client, at HF_ENDPOINT as it is now; its token is the user's own."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="adaptool")


def state(api: HfApi, repo: str, revision: str | None, place: str) -> RepoState:
    """The commit that `revision` is now, and whether the repository is private."""

    def ask() -> RepoState:
        found = api.model_info(repo, revision=revision, timeout=_TIMEOUT)
        if not found.sha:
            message = "the Hub names no commit for this revision"
            raise RemoteError(message, code=Code.NETWORK, file=place)
        return RepoState(found.sha, bool(found.private))

    return patiently(ask, place)


def tree(api: HfApi, repo: str, commit: str, place: str) -> tuple[RemoteFile, ...]:
    """Every file of the commit, in the server's order; names are as hostile as they come."""
    from huggingface_hub.hf_api import RepoFile

    def ask() -> tuple[RemoteFile, ...]:
        entries = api.list_repo_tree(repo, recursive=True, revision=commit)
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        return tuple(
            RemoteFile(each.path, each.size, each.blob_id, each.lfs.sha256 if each.lfs else None)
            for each in files
        )

    return patiently(ask, place)


def stream(origin: Origin, path: str, start: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a file from `start` on; a new connection takes up where one broke off.

    A server that does not know ranges sends the file from its beginning: offsets then restart at 0.
    """
    position, failures = start, 0
    while True:
        try:
            with told(origin.place):
                for offset, chunk in _one_stream(origin, path, position):
                    position, failures = offset + len(chunk), 0
                    yield offset, chunk
        except RemoteError as error:
            failures += 1
            _wait_or_raise(error, failures)
        else:
            return


def _one_stream(origin: Origin, path: str, start: int) -> Iterator[tuple[int, bytes]]:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # "identity": a compressed answer has no ranges and no length to check.
    headers = {**build_hf_headers(library_name="adaptool"), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    url = hf_hub_url(origin.repo, path, revision=origin.commit, endpoint=origin.api.endpoint)
    with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
        hf_raise_for_status(response)
        offset = start if response.status_code == 206 else 0
        for chunk in response.iter_bytes():
            yield offset, chunk
            offset += len(chunk)


def patiently(ask: Callable[[], T], place: str) -> T:
    """What `ask` gives, tried again where the Hub or the network says that it may help."""
    failures = 0
    while True:
        try:
            with told(place), quiet():
                return ask()
        except RemoteError as error:
            failures += 1
            _wait_or_raise(error, failures)


def _wait_or_raise(error: RemoteError, failures: int) -> None:
    seconds = _seconds_to_wait(error, failures)
    if not error.retryable or failures >= ATTEMPTS or seconds > LONGEST_WAIT:
        raise error
    time.sleep(seconds)


def _seconds_to_wait(error: RemoteError, failures: int) -> float:
    """What the server asked for; else 0 after the first failure, then 1, 2, 4, 8."""
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError) and cause.response.status_code in _REFUSED_FOR_NOW:
        asked = cause.response.headers.get("Retry-After", "")
        if asked.isdecimal():
            return float(asked)
    return 0.0 if failures == 1 else float(2 ** (failures - 2))
