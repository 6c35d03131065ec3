"""What the client's cache on this machine knows of a repository: all there is in offline mode."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from adaptool.errors import RemoteError
from adaptool.findings import Code
from adaptool.store.adapter_files import CONFIG_FILE as ADAPTER_CONFIG
from adaptool.store.adapter_files import WEIGHTS_FILE
from adaptool.store.checkpoint import CONFIG_FILE, LARGEST_INDEX_BYTES
from adaptool.store.digest import sha256_of
from adaptool.store.documents import read_document
from adaptool.store.index import parse_index
from adaptool.store.local import LocalSource
from adaptool.store.weight_files import INDEX_SUFFIX, WEIGHTS_SUFFIX

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = (WEIGHTS_SUFFIX, ".gguf", ".bin", ".pt", ".pth", ".st")
# Where the first is, what wrote it has put the second beside it.
_COMPANIONS = (
    (WEIGHTS_FILE, ADAPTER_CONFIG),
    ("model" + WEIGHTS_SUFFIX, CONFIG_FILE),
    ("model" + INDEX_SUFFIX, CONFIG_FILE),
)


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file of a commit: its size in bytes and the digests that the cache keeps as its name.

    `absent`: it belongs to the commit, and the cache does not hold it; then nothing else is known.
    """

    path: str
    size: int = 0
    oid: str = ""
    sha256: str | None = None
    absent: bool = True


def is_offline() -> bool:
    """Whether the client may ask nobody (HF_HUB_OFFLINE)."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def incomplete(place: str, what: str) -> RemoteError:
    """The error (exit 6) where the cache does not hold all of it."""
    message = f"the Hub's client is in offline mode, and its cache holds {what}"
    hint = "unset HF_HUB_OFFLINE, or name a local directory"
    return RemoteError(message, code=Code.OFFLINE, file=place, hint=hint)


def cached_commit(api: HfApi, repo: str, revision: str | None, place: str) -> str:
    """The commit that `revision` was when the client last saw it; RemoteError where it did not."""
    from huggingface_hub.errors import RevisionResolutionError

    try:
        found = api.resolve_revision(repo, revision=revision, local_files_only=True)
    except RevisionResolutionError as error:
        raise incomplete(place, f"no revision {revision or 'main'!r} of it") from error
    if not _snapshot(repo, found.resolved).is_dir():
        raise incomplete(place, f"no file of commit {found.resolved}")
    return found.resolved


def cached_files(repo: str, commit: str, place: str) -> tuple[CachedFile, ...]:
    """The files of the commit, as far as this machine knows them.

    That is the client's own list where it keeps one (a whole snapshot was downloaded); else the
    files that are here and those without which they are nothing: an index's shards, a config.
    RemoteError (exit 6) where no weights are here.
    """
    root = _snapshot(repo, commit)
    here = {path.relative_to(root).as_posix(): path for path in _walked(root)}
    if not any(path.endswith(_WEIGHTS) for path in here):
        raise incomplete(place, "no weights of it")
    known = _listed(repo, commit) or {*here, *_needed(here)}
    return tuple(
        _described(path, here[path]) if path in here else CachedFile(path)
        for path in sorted({*known, *here})
    )


def _snapshot(repo: str, commit: str) -> Path:
    """Source: huggingface_hub's guide "Understand caching"."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}/snapshots/{commit}"


def _walked(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        paths = (Path(folder, name) for name in names)
        yield from (path for path in paths if path.is_file())


def _listed(repo: str, commit: str) -> frozenset[str]:
    """The client's list of the commit's files; empty where it keeps none."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return frozenset(each.path for each in get_cached_repo_tree(repo, revision=commit))
    except CachedRepoTreeNotFoundError:
        return frozenset()


def _needed(here: Mapping[str, Path]) -> Iterator[str]:
    """What must be beside the files that are here."""
    for path, file in here.items():
        folder, name = PurePosixPath(path).parent, PurePosixPath(path).name
        yield from ((folder / other).as_posix() for one, other in _COMPANIONS if one == name)
        if path.endswith(INDEX_SUFFIX):
            yield from ((folder / shard).as_posix() for shard in _shards(file))


def _shards(index: Path) -> Sequence[str]:
    raw = read_document(index, limit_bytes=LARGEST_INDEX_BYTES, what="index")
    return parse_index(raw, file=index.name).shards


def _described(path: str, file: Path) -> CachedFile:
    """The cache links to a file whose name is the digest; where it holds a copy, that is read."""
    size = file.stat().st_size
    name = file.readlink().name if file.is_symlink() else ""
    if _GIT_OID.fullmatch(name):
        return CachedFile(path, size, oid=name, absent=False)
    if not _SHA256.fullmatch(name):
        with LocalSource(file) as source:
            name = sha256_of(source)
    return CachedFile(path, size, sha256=name, absent=False)
