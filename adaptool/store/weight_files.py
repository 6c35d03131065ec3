"""Which files of a directory are the weights of a model, as the common loaders choose them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from adaptool.errors import InputError, UsageError
from adaptool.findings import Code
from adaptool.store.local import unreadable
from adaptool.store.safe_names import printable

WEIGHTS_SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
# In the order of preference. Source: WEIGHTS_NAME constants of transformers and diffusers.
_STEMS = ("model", "diffusion_pytorch_model")
# Of a diffusers pipeline, and the folders of its models that adapters are mostly trained for.
PIPELINE_FILE = "model_index.json"
_DENOISERS = ("transformer", "unet")
_ADAPTERS = frozenset({"adapter_model.safetensors", "adapters.safetensors"})
# Mistral's own format beside the usual one: the same weights under other names.
_OTHER_FORM = re.compile(r"consolidated.*")
_PART = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
_TRAINER_STATE = "training_args|optimizer|scheduler|scaler|rng_state"
_PICKLES = re.compile(rf"(?!{_TRAINER_STATE}).*\.(bin|pt|pth|ckpt)(\.index\.json)?")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Weights:
    """Either an index file, which names the shards, or the one weight file itself."""

    index_file: str | None
    files: tuple[str, ...]


def find_weights(root: Path, index_file: str | None = None) -> Weights:
    """The weights in `root`, or those of its index file `index_file` where one is asked for.

    UsageError where there are none or `root` is a pipeline, InputError where it is not clear which
    they are or where they are pickles.
    """
    names = _names(root)
    if index_file is not None and index_file in names:
        return Weights(index_file, ())
    if PIPELINE_FILE in names:
        _refuse_pipeline(root, names)
    index = _chosen(names, INDEX_SUFFIX, root, "index files")
    if index is not None:
        return Weights(index, ())
    only = _chosen(names, WEIGHTS_SUFFIX, root, "weight files and no index")
    if only is None:
        _refuse_empty(root, names)
    if _PART.fullmatch(only):
        message = f"{only} is one of several shards, and there is no index that names them"
        hint = f"download model{INDEX_SUFFIX}"
        file = printable(str(root))
        raise InputError(message, code=Code.CHECKPOINT_MISSING, file=file, hint=hint)
    return Weights(None, (only,))


def refuse_stale(root: Path, index_file: str, shards: tuple[str, ...]) -> None:
    """InputError where a whole-model file lies beside an index that does not list it.

    transformers loads that file and never looks at the index; other loaders do the reverse.
    """
    names = {index_file.removesuffix(INDEX_SUFFIX), *_STEMS}
    for name in sorted(names):
        file = name + WEIGHTS_SUFFIX
        if file not in shards and os.path.lexists(root / file):
            message = f"{index_file} beside it does not list it; loaders disagree on which counts"
            hint = "remove whichever is stale"
            where = printable(str(root / file))
            raise InputError(message, code=Code.STALE_WEIGHTS, file=where, hint=hint)


def _names(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(root))
    except OSError as error:
        raise unreadable(error, root, printable(str(root))) from error


def _chosen(names: list[str], suffix: str, root: Path, what: str) -> str | None:
    """The file with a usual name, else the only one with this suffix.

    Another form of the weights counts only where there is nothing else.
    """
    usual = [stem + suffix for stem in _STEMS if stem + suffix in names]
    if usual:
        return usual[0]
    found = [name for name in names if name.endswith(suffix) and name not in _ADAPTERS]
    found = [name for name in found if not _OTHER_FORM.fullmatch(name)] or found
    if len(found) <= 1:
        return found[0] if found else None
    message = f"{len(found)} {what}: {_listed(found)}"
    hint = "name one of them instead of the directory"
    file = printable(str(root))
    raise InputError(message, code=Code.CHECKPOINT_MISSING, file=file, hint=hint)


def _refuse_pipeline(root: Path, names: list[str]) -> NoReturn:
    """Several models in folders of their own; weights at the top are a copy of one of them."""
    inner = _folders_with_weights(root, names)
    message = f"no model here but a pipeline of several ({PIPELINE_FILE})"
    hint = "name the directory of one of its models"
    if inner:
        first = next((name for name in inner if name in _DENOISERS), inner[0])
        message += f": {_listed(inner, most=20)}"
        hint = f"name one of them, such as {printable(str(root / first))}"
    raise UsageError(message, code=Code.CHECKPOINT_MISSING, file=printable(str(root)), hint=hint)


def _refuse_empty(root: Path, names: list[str]) -> NoReturn:
    """No weights: say what lies there instead, and what was looked for."""
    file = printable(str(root))
    if _ADAPTERS.intersection(names):
        message = "holds an adapter, not a model"
        hint = "name the base model's directory"
        raise UsageError(message, code=Code.CHECKPOINT_MISSING, file=file, hint=hint)
    pickles = [name for name in names if _PICKLES.fullmatch(name)]
    if pickles:
        message = f"holds only pickled weights, which can run code: {_listed(pickles)}"
        hint = "--allow-pickle checks them and loads them in a child process"
        raise InputError(message, code=Code.PICKLE_ONLY, file=file, hint=hint)
    wanted = [stem + suffix for stem in _STEMS for suffix in (INDEX_SUFFIX, WEIGHTS_SUFFIX)]
    message = f"no model here: looked for {', '.join(wanted)} or a single *{WEIGHTS_SUFFIX}"
    hint = _inner_hint(root, names)
    raise UsageError(message, code=Code.CHECKPOINT_MISSING, file=file, hint=hint)


def _inner_hint(root: Path, names: list[str]) -> str:
    inner = _folders_with_weights(root, names)
    if inner:
        return f"name one of its folders with weights: {_listed(inner)}"
    return "name the directory that holds the weights, or a weight file"


def _folders_with_weights(root: Path, names: list[str]) -> list[str]:
    return [name for name in names if any((root / name).glob(f"*{WEIGHTS_SUFFIX}"))]


def _listed(names: list[str], most: int = _SHOWN) -> str:
    shown = ", ".join(printable(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, …"
