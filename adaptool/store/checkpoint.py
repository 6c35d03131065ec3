"""A base model on disk: its shards' headers, its index, its config and its other files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from adaptool.errors import AdaptoolError, InputError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.store.companions import companions_of
from adaptool.store.documents import parse_json_object, read_document
from adaptool.store.header import Header, read_header
from adaptool.store.index import Index, check_against_shards, parse_index
from adaptool.store.limits import Limits
from adaptool.store.local import LocalSource
from adaptool.store.safe_names import printable
from adaptool.store.source import Opener, Source, check_unchanged
from adaptool.store.tensors import TensorRef
from adaptool.store.weight_files import INDEX_SUFFIX, Weights, find_weights, refuse_stale

CONFIG_FILE = "config.json"
LARGEST_CONFIG_BYTES = 16 * 1024 * 1024
LARGEST_INDEX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file; `file` is its path below the checkpoint's root, with slashes."""

    file: str
    source: Source
    header: Header


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened base model; close it, or use it as a context manager.

    `tensors` are those of all shards, in the order of the shards and of their data. `index` is
    the raw index file named `index_file`, `config` and `config_bytes` are config.json; None where
    there is none. `companions` are the other files to copy: neither shards, index nor config.
    `left_out` are the files that a copy of the model leaves behind, such as other forms of weights.
    A single file has no index, no config and no companions.
    """

    name: str
    root: Path
    shards: tuple[Shard, ...]
    tensors: Mapping[str, TensorRef]
    index: bytes | None = field(default=None, repr=False)
    index_file: str | None = None
    config: Mapping[str, Any] | None = field(default=None, repr=False)
    config_bytes: bytes | None = field(default=None, repr=False)
    companions: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every shard."""
        for shard in self.shards:
            shard.source.close()

    def check_unchanged(self) -> None:
        """IntegrityError where a shard was changed, replaced or removed since it was opened."""
        for shard in self.shards:
            check_unchanged(shard.source)


def open_checkpoint(
    path: Path, *, limits: Limits | None = None, opener: Opener = LocalSource
) -> Checkpoint:
    """Open the model at `path`: a directory, its index file, or one safetensors file.

    Reads the headers, the index and the config; `opener` opens the weights files. UsageError
    where there is no model, InputError where its parts are malformed or contradict each other.
    """
    reading = _Reading(limits or Limits(), opener)
    if os.path.isdir(path):
        return _open_directory(path, find_weights(path), reading)
    if path.name.endswith(INDEX_SUFFIX) and os.path.isdir(path.parent):
        return _open_directory(path.parent, find_weights(path.parent, path.name), reading)
    return _open_file(path, reading)


@dataclass(frozen=True, slots=True)
class _Reading:
    """How weights files are opened, and how much their headers may hold."""

    limits: Limits
    opener: Opener

    def shard(self, root: Path, file: str, stack: ExitStack) -> Shard:
        """The weights file at `root / file`, closed by `stack`."""
        source = self.opener(root / file)
        stack.callback(source.close)
        return Shard(file, source, read_header(source, limits=self.limits))


def _open_file(path: Path, reading: _Reading) -> Checkpoint:
    with ExitStack() as stack:
        shard = reading.shard(path.parent, path.name, stack)
        stack.pop_all()
    return Checkpoint(
        name=shard.source.name,
        root=path.parent,
        shards=(shard,),
        tensors=shard.header.tensors,
        findings=shard.header.findings,
    )


def _open_directory(root: Path, weights: Weights, reading: _Reading) -> Checkpoint:
    raw_index, index = _index(root, weights.index_file)
    files = weights.files if index is None else index.shards
    if weights.index_file is not None:
        refuse_stale(root, weights.index_file, files)
    config_bytes, config = _config(root)
    companions, left_out = companions_of(root, {*files, weights.index_file, CONFIG_FILE})
    with ExitStack() as stack:
        shards = _open_shards(root, files, stack, reading)
        found = [] if index is None else check_against_shards(index, _names(shards))
        tensors = _all_tensors(shards)
        stack.pop_all()
    findings = [finding for shard in shards for finding in shard.header.findings]
    return Checkpoint(
        name=printable(str(root)),
        root=root,
        shards=shards,
        tensors=MappingProxyType(tensors),
        index=raw_index,
        index_file=weights.index_file,
        config=config,
        config_bytes=config_bytes,
        companions=companions,
        left_out=left_out,
        findings=(*findings, *found, *_code_findings(root, config)),
    )


def _index(root: Path, file: str | None) -> tuple[bytes | None, Index | None]:
    if file is None:
        return None, None
    raw = read_document(root / file, limit_bytes=LARGEST_INDEX_BYTES, what="index")
    return raw, parse_index(raw, file=printable(str(root / file)))


def _config(root: Path) -> tuple[bytes | None, dict[str, Any] | None]:
    path = root / CONFIG_FILE
    if not os.path.lexists(path):
        return None, None
    raw = read_document(path, limit_bytes=LARGEST_CONFIG_BYTES, what="config")
    return raw, parse_json_object(raw, file=printable(str(path)), nonfinite=True)


def _open_shards(
    root: Path, files: tuple[str, ...], stack: ExitStack, reading: _Reading
) -> tuple[Shard, ...]:
    """Every shard opened, closed by `stack`; all that are missing are named at once."""
    missing = [file for file in files if not os.path.lexists(root / file)]
    if missing:
        message = f"{len(missing)} of {len(files)} shards are missing: {', '.join(missing[:5])}"
        hint = "download the rest"
        name = printable(str(root / missing[0]))
        raise InputError(message, code=Code.SHARD_MISSING, file=name, hint=hint)
    shards, errors = [], []
    for file in files:
        try:
            shards.append(reading.shard(root, file, stack))
        except AdaptoolError as error:
            errors.append(error)
    if errors:
        raise gathered(errors)
    return tuple(shards)


def _names(shards: tuple[Shard, ...]) -> dict[str, Mapping[str, TensorRef]]:
    return {shard.file: shard.header.tensors for shard in shards}


def _all_tensors(shards: tuple[Shard, ...]) -> dict[str, TensorRef]:
    tensors: dict[str, TensorRef] = {}
    for shard in shards:
        tensors.update(shard.header.tensors)
    return tensors


def _code_findings(root: Path, config: Mapping[str, Any] | None) -> list[Finding]:
    """Code that a loader may be asked to run: it is copied, never run here."""
    if config is None or "auto_map" not in config:
        return []
    message = "the model brings its own code; it is copied, and never run by adaptool"
    hint = "read the .py files before you load the result with trust_remote_code"
    name = printable(str(root / CONFIG_FILE))
    finding = Finding(Code.CUSTOM_CODE, Severity.WARNING, message, name, None, "auto_map", hint)
    return [finding]
