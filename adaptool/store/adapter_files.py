"""The files of one adapter: a PEFT directory or a single file, headers read, weights untouched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from adaptool.errors import InputError, UsageError
from adaptool.findings import Code, Finding
from adaptool.store.digest import digest_of_bytes
from adaptool.store.documents import parse_json_object, read_document
from adaptool.store.gguf import is_gguf, read_gguf
from adaptool.store.header import Header, read_header
from adaptool.store.local import LocalSource
from adaptool.store.safe_names import printable
from adaptool.store.source import Opener, Source
from adaptool.store.stranger_packages import refuse_stranger
from adaptool.store.tensors import TensorRef

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
MLX_FILE = "adapters.safetensors"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
# Weights in a directory that are all of an adapter: what they are scaled by stands in them.
WHOLE_FILES = (DIFFUSERS_FILE, "lora.safetensors", "adapter.safetensors", MLX_FILE)
SAFETENSORS, GGUF = "safetensors", "gguf"
METADATA_KEYS = ("adapter_config", "lora_adapter_metadata")
LARGEST_CONFIG = 16 * 1024 * 1024
# What an adapter may bring along that belongs to the model: these win over the base's.
TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An opened adapter.

    `config` is adapter_config.json or the config kept in the file's metadata, None where neither
    is there; `config_file` says which file it came from, `config_sha256` is that file's digest,
    None where the config is a value in the weights file; `companions` are tokenizer files.
    `container` is what the tensors lie in; the metadata of a GGUF file are its key-value pairs,
    numbers as JSON.
    """

    name: str
    path: Path
    source: Source
    header: Header
    config: Mapping[str, Any] | None
    config_file: str
    config_path: Path | None
    companions: tuple[Path, ...]
    container: str = SAFETENSORS
    config_sha256: str | None = None

    @property
    def tensors(self) -> Mapping[str, TensorRef]:
        """Every tensor of the file."""
        return self.header.tensors

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the header's parser noted."""
        return self.header.findings

    def close(self) -> None:
        """Let go of the weights file."""
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Config:
    """A config, the file that it is, and that file's digest."""

    value: Mapping[str, Any] | None = None
    path: Path | None = None
    sha256: str | None = None


_NO_CONFIG = _Config()


def open_adapter(path: Path, opener: Opener = LocalSource) -> AdapterFiles:
    """Open a directory or a single file; reads the header and the config only.

    `opener` opens the weights file.
    """
    if path.is_dir():
        whole = whole_file(path)
        if whole is None:
            return _open_directory(path, opener)
        path = whole
    source = opener(path)
    try:
        packed = is_gguf(source)
        header = read_gguf(source).header if packed else read_header(source)
        config = _NO_CONFIG if packed else _config_of_file(path, header)
    except BaseException:
        source.close()
        raise
    container = GGUF if packed else SAFETENSORS
    return _opened(path, path, source, header, config, container=container)


def whole_file(path: Path) -> Path | None:
    """The weights in the directory that need no PEFT config beside them; PEFT's win over them.

    MismatchError where the directory is of a kind that is not read.
    """
    if (path / WEIGHTS_FILE).exists() or (path / PICKLE_FILE).exists():
        return None
    refuse_stranger(path)
    named = (path / name for name in WHOLE_FILES if (path / name).is_file())
    packed = sorted(path.glob("*.gguf"))
    return next(named, packed[0] if len(packed) == 1 else None)


def _open_directory(path: Path, opener: Opener) -> AdapterFiles:
    weights = _weights_of(path)
    beside = _read_config(path / CONFIG_FILE)
    source = opener(weights)
    try:
        header = read_header(source)
        config = beside if beside.path else _config_of_file(weights, header)
    except BaseException:
        source.close()
        raise
    companions = tuple(entry for entry in sorted(path.iterdir()) if entry.name in TOKENIZER_FILES)
    return _opened(path, weights, source, header, config, companions=companions)


def _opened(
    path: Path,
    weights: Path,
    source: Source,
    header: Header,
    config: _Config,
    *,
    companions: tuple[Path, ...] = (),
    container: str = SAFETENSORS,
) -> AdapterFiles:
    return AdapterFiles(
        name=str(path),
        path=weights,
        source=source,
        header=header,
        config=config.value,
        config_file=str(config.path or weights),
        config_path=config.path,
        companions=companions,
        container=container,
        config_sha256=config.sha256,
    )


def _weights_of(path: Path) -> Path:
    weights = path / WEIGHTS_FILE
    if weights.exists() or weights.is_symlink():
        return weights
    if (path / PICKLE_FILE).exists():
        message = "holds only adapter_model.bin, a pickle that can run code"
        hint = "--allow-pickle checks it and loads it in a child process"
        raise InputError(message, code=Code.PICKLE_ONLY, file=str(path), hint=hint)
    inner = sorted(entry.name for entry in path.iterdir() if (entry / CONFIG_FILE).exists())
    if inner:
        message = f"holds {len(inner)} named adapters: {', '.join(inner[:5])}"
        hint = f"name one of them: {path / inner[0]}"
        raise UsageError(message, code=Code.NOT_FOUND, file=str(path), hint=hint)
    if not (path / CONFIG_FILE).exists():
        _refuse_nothing(path)
    message = f"no {WEIGHTS_FILE} in this directory"
    raise UsageError(message, code=Code.NOT_FOUND, file=str(path), hint="is the download complete?")


def _refuse_nothing(path: Path) -> None:
    message = f"no adapter here: neither {CONFIG_FILE} nor {WEIGHTS_FILE}"
    hint = "name the directory that holds them, or a .safetensors file"
    raise UsageError(message, code=Code.NOT_FOUND, file=str(path), hint=hint)


def _config_of_file(path: Path, header: Header) -> _Config:
    """A single file's config: its own metadata first, then adapter_config.json beside it."""
    for key in METADATA_KEYS:
        text = header.metadata.get(key)
        if text is not None:
            return _Config(parse_json_object(text.encode(), file=f"{path} metadata {key}"))
    return _read_config(path.parent / CONFIG_FILE)


def _read_config(path: Path) -> _Config:
    """The config in a file of its own, and the file; neither where there is none."""
    if not path.exists():
        return _NO_CONFIG
    raw = read_document(
        path, limit_bytes=LARGEST_CONFIG, what="adapter config", too_large=InputError
    )
    value = parse_json_object(raw, file=printable(str(path)))
    return _Config(value, path, digest_of_bytes(raw))


def config_beside(path: Path) -> Path | None:
    """The adapter_config.json that the weights file at `path` is read with.

    None where its own metadata holds the config, or there is none. Errors as `read_header`.
    """
    beside = path.parent / CONFIG_FILE
    if path.name.endswith(".gguf") or not beside.exists():
        return None
    with LocalSource(path) as source:
        metadata = read_header(source).metadata
    return None if any(key in metadata for key in METADATA_KEYS) else beside


def value_digest(config: Mapping[str, Any]) -> str:
    """sha256 of the config as canonical JSON: of a value, never of a file.

    Receipts written before 2026-12 have it for `config_sha256`.
    """
    return digest_of_bytes(json.dumps(config, sort_keys=True, ensure_ascii=False).encode())
