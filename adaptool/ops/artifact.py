"""Adapter or checkpoint: decided by what lies at a path, never by what it is called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.layouts import layouts
from adaptool.store.adapter_files import (
    CONFIG_FILE,
    PICKLE_FILE,
    WEIGHTS_FILE,
    AdapterFiles,
    open_adapter,
    whole_file,
)
from adaptool.store.checkpoint import Checkpoint, open_checkpoint
from adaptool.store.local import LocalSource
from adaptool.store.source import Opener
from adaptool.store.weight_files import INDEX_SUFFIX

# Key parts of adapters whose layout cannot be read yet: better refused as an adapter by name than
# taken for a model.
_TRAINED = re.compile(r"(^|[._])(lora|dora|hada|lokr|ia3|oft|boft|glora)[._]", re.IGNORECASE)


def open_artifact(path: Path, opener: Opener = LocalSource) -> AdapterFiles | Checkpoint:
    """Open what lies at `path`, headers and configs only; close it, or use it in a `with`.

    `opener` opens the weights files. UsageError where nothing is there, or neither adapter nor
    model; errors of opening as in `open_adapter` and `open_checkpoint`.
    """
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a parent may not be read
        return _in_directory(path, opener)
    if path.name.endswith(INDEX_SUFFIX):
        return open_checkpoint(path, opener=opener)
    return _adapter_file(path, opener) or open_checkpoint(path, opener=opener)


def require(path: Path) -> None:
    """UsageError, naming what lies near, unless something is at `path`."""
    if not os.path.lexists(path):
        LocalSource(path).close()


def _in_directory(path: Path, opener: Opener) -> AdapterFiles | Checkpoint:
    if any(os.path.lexists(path / name) for name in (CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE)):
        return open_adapter(path, opener)
    if whole_file(path) is not None:
        return open_adapter(path, opener)
    try:
        opened = open_checkpoint(path, opener=opener)
    except UsageError as error:
        if error.code is not Code.CHECKPOINT_MISSING:
            raise
        return _named_adapters(path, error)
    if opened.index is None and _is_adapter_like(opened.tensors):
        # A lone adapter file in a folder of its own, as kohya and diffusers leave it.
        opened.close()
        return open_adapter(path / opened.shards[0].file, opener)
    return opened


def _named_adapters(path: Path, missing: UsageError) -> AdapterFiles:
    """No model here: perhaps several adapters in folders of their own, which names them."""
    if any(os.path.lexists(entry / CONFIG_FILE) for entry in path.iterdir()):
        return open_adapter(path)
    message = f"no adapter ({CONFIG_FILE}, {WEIGHTS_FILE}) and {missing.message}"
    raise UsageError(message, code=missing.code, file=missing.file, hint=missing.hint) from missing


def _adapter_file(path: Path, opener: Opener) -> AdapterFiles | None:
    """The single file as an adapter, None where its keys are not an adapter's."""
    files = open_adapter(path, opener)
    # Names that say so are asked first: whoever decodes the file asks every layout again.
    if _is_adapter_like(files.tensors) or _is_claimed(files):
        return files
    files.close()
    return None


def _is_claimed(files: AdapterFiles) -> bool:
    return any(layout.sniff(files).claimed for layout in layouts().values())


def _is_adapter_like(names: Iterable[str]) -> bool:
    return any(name.startswith("base_model.") or _TRAINED.search(name) for name in names)
