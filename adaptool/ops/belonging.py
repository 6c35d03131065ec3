"""Which artifact a file is a part of: whoever lists changed files names files, not artifacts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from adaptool.store.adapter_files import CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE, WHOLE_FILES
from adaptool.store.checkpoint import CONFIG_FILE as MODEL_CONFIG
from adaptool.store.weight_files import INDEX_SUFFIX

# Names that mean nothing without what lies beside them.
_PARTS = frozenset({CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE, MODEL_CONFIG})
_WITH_CONFIG = frozenset({"model.safetensors", *WHOLE_FILES})
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")


def wholes(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The artifacts that `paths` are files of, each once, in their order."""
    return tuple(dict.fromkeys(whole(path) for path in paths))


def whole(path: Path) -> Path:
    """The folder that `path` is a part of, or `path` itself: a directory, a file that is all."""
    name, folder = path.name, path.parent
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a parent may not be read
        return path
    if name in _PARTS or name.endswith(INDEX_SUFFIX):
        return folder
    if name in _WITH_CONFIG and _holds(folder, CONFIG_FILE, MODEL_CONFIG):
        return folder
    return folder if _SHARD.fullmatch(name) and _is_indexed(folder) else path


def _holds(folder: Path, *names: str) -> bool:
    return any(os.path.lexists(folder / name) for name in names)


def _is_indexed(folder: Path) -> bool:
    return any(folder.glob(f"*{INDEX_SUFFIX}"))
