"""The files of a model directory that are not its weights: which go with it, which stay behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from adaptool.errors import OutputError
from adaptool.findings import Code
from adaptool.store.local import unreadable
from adaptool.store.safe_names import printable

# Of the model as it was, not as it will be; and other forms of its weights. Lower case.
_LEFT_OUT = (
    "readme.md",
    "sha256sums",
    "adaptool.json",
    "adaptool.unmerge",
    "consolidated*",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.pkl",
    "*.gguf",
    "*.onnx",
    "*.onnx_data*",
    "*.onnx.data",
    "*.h5",
    "*.msgpack",
    "*.index.json",
    "*.ot",
    "*.tflite",
    ".*.adaptool.lock",
    ".ds_store",
)
# The states a trainer leaves in its output directory, each a whole model of its own.
_TRAINING_STATE = "checkpoint-[0-9]*"
_WEIGHTS = "*.safetensors"


def companions_of(
    root: Path, own: AbstractSet[str | None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files below `root` to copy, and those to leave out; paths with slashes, sorted.

    `own` are the shards, index and config, in neither list. Hidden directories are not entered,
    nor are directories behind symlinks. At the top, weights outside `own` are left out; in a
    folder they are a part of the model (sentence-transformers' `2_Dense`) and are copied.
    """
    kept: list[str] = []
    left_out: list[str] = []
    for name in _files(root):
        if name in own:
            continue
        (left_out if stays_behind(name) else kept).append(name)
    return tuple(sorted(kept)), tuple(sorted(left_out))


def stays_behind(name: str) -> bool:
    """Whether a merge leaves this file out: a path with slashes below the model's directory."""
    folder, _, base = name.lower().rpartition("/")
    if any(fnmatchcase(part, _TRAINING_STATE) for part in folder.split("/")):
        return True
    if not folder and fnmatchcase(base, _WEIGHTS):
        return True
    return any(fnmatchcase(base, pattern) for pattern in _LEFT_OUT)


def _files(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root, onerror=_refuse_folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root)
        for name in names:
            if _is_file(Path(folder, name)):
                yield (inside / name).as_posix()


def _is_file(path: Path) -> bool:
    """Whether it is a regular file, through symlinks; pipes, sockets and devices are not copied."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        name = printable(str(path))
        if path.is_symlink():
            message = "is a symlink that leads nowhere"
            hint = "download the file again, or remove the link"
            raise OutputError(message, code=Code.NOT_READABLE, file=name, hint=hint) from error
        raise unreadable(error, path, name) from error


def _refuse_folder(error: OSError) -> NoReturn:
    path = Path(error.filename)
    raise unreadable(error, path, printable(str(path))) from error
