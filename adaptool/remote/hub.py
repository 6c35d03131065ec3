"""The Hub through its own client: revisions, trees and streams of bytes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from typing import TYPE_CHECKING, TypeVar

from adaptool.errors import RemoteError
from adaptool.findings import Code
from adaptool.remote.cached import cached_commit, cached_files, is_offline
from adaptool.remote.failures import told
from adaptool.store.safe_names import printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import httpx

T = TypeVar("T")

ATTEMPTS = 6
"""How often in a row the same may fail without progress."""

LONGEST_WAIT = 60.0
"""Seconds that a Retry-After may ask for before the run ends and leaves the wait to the caller."""

_TIMEOUT = 60.0
_REFUSED_FOR_NOW = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a commit: its size in bytes, git's `oid` of it, and its sha256 if it is in LFS.

    `absent`: in offline mode, a file that the client's cache does not hold.
    """

    path: str
    size: int
    oid: str
    sha256: str | None
    absent: bool = False


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

    def file(self, path: str) -> str:
        """What errors call the file at `path`."""
        return f"{self.place}: {printable(path)}"


@contextmanager
def quiet() -> Iterator[None]:
    """The client logs each retry with its address on stderr; errors say what matters."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,  # sets the level when it is first imported, which may not be later
    )

    level, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(ERROR)
    if bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


def client() -> HfApi:
    """The client, at HF_ENDPOINT as it is now; its token is the user's own."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="adaptool")


def state(api: HfApi, repo: str, revision: str | None, place: str) -> RepoState:
    """The commit that `revision` is now, and whether the repository is private.

    In offline mode the commit that it was when the client last saw it; RemoteError if never.
    """
    if is_offline():
        with told(place):
            return RepoState(cached_commit(api, repo, revision, place), private=False)

    def ask() -> RepoState:
        found = api.model_info(repo, revision=revision, timeout=_TIMEOUT)
        if not found.sha:
            message = "the Hub names no commit for this revision"
            raise RemoteError(message, code=Code.NETWORK, file=place)
        return RepoState(found.sha, bool(found.private))

    return patiently(ask, place)


def tree(api: HfApi, repo: str, commit: str, place: str) -> tuple[RemoteFile, ...]:
    """Every file of the commit, in the server's order; names are as hostile as they come.

    In offline mode what the client's cache knows of them.
    """
    from huggingface_hub.hf_api import RepoFile

    if is_offline():
        with told(place):
            rows = cached_files(repo, commit, place)
        return tuple(RemoteFile(r.path, r.size, r.oid, r.sha256, r.absent) for r in rows)

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
    position, failures, place = start, 0, origin.file(path)
    while True:
        try:
            with told(place):
                for offset, chunk in _one_stream(origin, path, position):
                    position, failures = offset + len(chunk), 0
                    yield offset, chunk
        except RemoteError as error:
            failures += 1
            wait_or_raise(error, failures)
        else:
            return


def _one_stream(origin: Origin, path: str, start: int) -> Iterator[tuple[int, bytes]]:
    with answered(origin, path, f"bytes={start}-" if start else None) as response:
        offset = start if response.status_code == 206 else 0
        for chunk in response.iter_bytes():
            yield offset, chunk
            offset += len(chunk)


@contextmanager
def answered(
    origin: Origin, path: str, span: str | None, address: str | None = None
) -> Iterator[httpx.Response]:
    """The answer to a request for a file of the commit, or for the `span` of it (a Range header).

    `address` is where the Hub sent a request before: asked directly, and without the token. The
    client's own errors where the Hub refuses; its body is still to be read.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # "identity": a compressed answer has no ranges and no length to check.
    headers = build_hf_headers(library_name="adaptool", token=None if address is None else False)
    headers["Accept-Encoding"] = "identity"
    if span is not None:
        headers["Range"] = span
    url = hf_hub_url(origin.repo, path, revision=origin.commit, endpoint=origin.api.endpoint)
    with get_session().stream("GET", address or url, headers=headers, timeout=_TIMEOUT) as response:
        hf_raise_for_status(response)
        yield response


def patiently(ask: Callable[[], T], place: str) -> T:
    """What `ask` gives, tried again where the Hub or the network says that it may help."""
    failures = 0
    while True:
        try:
            with told(place), quiet():
                return ask()
        except RemoteError as error:
            failures += 1
            wait_or_raise(error, failures)


def wait_or_raise(error: RemoteError, failures: int) -> None:
    """Sleep as long as the server asks, or longer from failure to failure.

    The error is raised where another try will not help, or not soon.
    """
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
