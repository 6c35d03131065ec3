"""Which files of a repository an artifact is made of; everything else stays where it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from adaptool.errors import InputError, RemoteError, UsageError
from adaptool.findings import Code
from adaptool.remote.cached import incomplete
from adaptool.remote.hub import RemoteFile
from adaptool.remote.uri import HubUri
from adaptool.store.adapter_files import (
    CONFIG_FILE,
    PICKLE_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    WHOLE_FILES,
)
from adaptool.store.companions import stays_behind
from adaptool.store.model_card import CARD_FILE
from adaptool.store.own_files import SIDECARS
from adaptool.store.safe_names import check_distinct, check_relative, printable
from adaptool.store.sidecar import SIDECAR
from adaptool.store.weight_files import INDEX_SUFFIX, PIPELINE_FILE, WEIGHTS_SUFFIX

_PICKLES = re.compile(r"(?:pytorch_model|model|adapter_model).*\.(?:bin|pt|pth)(?:\.index\.json)?")
_CONSOLIDATED = re.compile(r"consolidated.*")
_TEXTS = re.compile(r"[^/]+\.(?:json|jinja|model|tiktoken|txt)|README\.md|(?:LICENSE|NOTICE)[^/]*")
_TRAINING = re.compile(r"trainer_state\.json|.*requirements.*\.txt|.*\.index\.json")
_LONE = (WEIGHTS_SUFFIX, ".gguf", ".st")  # weights that may stand alone
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Wanted:
    """A remote file and the name it gets in OUT."""

    file: RemoteFile
    name: str


def selected(uri: HubUri, files: Sequence[RemoteFile], *, allow_pickle: bool) -> tuple[Wanted, ...]:
    """The files to pull from the tree at `uri`, sorted by name.

    InputError (exit 3) for a hostile name anywhere in the tree and where there are only pickles;
    RemoteError (exit 6) where nothing lies at the URI's folder, and in offline mode where the
    client's cache lacks a file; UsageError where that holds no artifact.
    """
    place = str(uri)
    for file in files:
        check_relative(file.path, file=place, field="file name")
    found = _below(uri, files)
    if not files:
        message, hint = "the repository is empty", "name another branch, or push to it first"
        raise RemoteError(message, code=Code.NOT_FOUND, file=place, hint=hint)
    if not found:
        message = f"no such file or folder in the repository: {printable(uri.folder)}"
        raise RemoteError(message, code=Code.NOT_FOUND, file=place, hint="see its list of files")
    names = _chosen([each.name for each in found], place, allow_pickle=allow_pickle)
    check_distinct(names, file=place, field="file name")
    wanted = [each for each in found if each.name in set(names)] + _config_beside(uri, files)
    lacking = [each.name for each in wanted if each.file.absent]
    if lacking:
        count = f"{len(wanted) - len(lacking)} of the {len(wanted)} files that are needed"
        raise incomplete(place, f"{count}; it lacks {', '.join(map(printable, lacking[:_SHOWN]))}")
    return tuple(sorted(wanted, key=lambda each: each.name))


def _below(uri: HubUri, files: Iterable[RemoteFile]) -> list[Wanted]:
    """The files in the URI's folder, or the one file that it names."""
    if not uri.folder:
        return [Wanted(file, file.path) for file in files]
    exact = [file for file in files if file.path == uri.folder]
    if exact:
        return [Wanted(exact[0], uri.name)]
    prefix = f"{uri.folder}/"
    return [
        Wanted(file, file.path.removeprefix(prefix))
        for file in files
        if file.path.startswith(prefix)
    ]


def _config_beside(uri: HubUri, files: Iterable[RemoteFile]) -> list[Wanted]:
    """The adapter's config, which has its scale, beside the one file of weights that is named."""
    by_path = {file.path: file for file in files}
    beside = by_path.get(f"{uri.folder.removesuffix(uri.name)}{CONFIG_FILE}")
    is_weights = uri.folder in by_path and uri.name.endswith((*_LONE, ".bin", ".pt"))
    return [Wanted(beside, CONFIG_FILE)] if is_weights and beside is not None else []


def _chosen(names: Sequence[str], place: str, *, allow_pickle: bool) -> list[str]:
    if len(names) == 1 and names[0].endswith(_LONE):
        return list(names)
    top = [name for name in names if "/" not in name]
    if PIPELINE_FILE in top:
        _refuse_pipeline(names, place)
    is_adapter = any(name in top for name in (CONFIG_FILE, WEIGHTS_FILE, *WHOLE_FILES))
    weights = _adapter_weights(top) if is_adapter else _model_weights(top)
    if not weights and allow_pickle:
        weights = [name for name in top if _PICKLES.fullmatch(name)]
    if not weights:
        _refuse_without_weights(names, top, place)
    texts = TOKENIZER_FILES | {CONFIG_FILE, CARD_FILE} if is_adapter else _texts(top)
    kept = [name for name in top if name in texts or name in SIDECARS or _is_licence(name)]
    # An unmerge restores every file that the merge had copied.
    copied = [name for name in names if not stays_behind(name)] if SIDECAR in top else []
    return sorted({*weights, *kept, *copied})


def _is_licence(name: str) -> bool:
    return name.startswith(("LICENSE", "NOTICE"))


def _texts(top: Iterable[str]) -> frozenset[str]:
    return frozenset(
        name for name in top if _TEXTS.fullmatch(name) and not _TRAINING.fullmatch(name)
    )


def _adapter_weights(top: Sequence[str]) -> list[str]:
    """The one file that is the adapter: PEFT's name first, as its own loader has it."""
    usual = [name for name in (WEIGHTS_FILE, *WHOLE_FILES) if name in top]
    if usual or PICKLE_FILE in top:
        return usual[:1]
    packed = [name for name in top if name.endswith(".gguf")]
    return packed if len(packed) == 1 else []


def _model_weights(top: Sequence[str]) -> list[str]:
    """An index with its shards, else the model's one file, else all there are."""
    found = [name for name in top if name.endswith(WEIGHTS_SUFFIX)]
    found = [name for name in found if not _CONSOLIDATED.fullmatch(name)] or found
    for index in ("model" + INDEX_SUFFIX, *sorted(top)):
        if index in top and index.endswith(INDEX_SUFFIX):
            stem = re.escape(index.removesuffix(INDEX_SUFFIX))
            shards = [name for name in found if re.fullmatch(rf"{stem}-.*", name)]
            return [index, *(shards or found)]
    whole = [name for name in ("model" + WEIGHTS_SUFFIX,) if name in found]
    packed = [name for name in top if name.endswith(".gguf")]
    return whole or found or (packed if len(packed) == 1 else [])


def _refuse_pipeline(names: Sequence[str], place: str) -> NoReturn:
    message = f"no single model but a pipeline of several ({PIPELINE_FILE})"
    raise UsageError(
        message, code=Code.CHECKPOINT_MISSING, file=place, hint=_folder_hint(names, place)
    )


def _refuse_without_weights(names: Sequence[str], top: Sequence[str], place: str) -> NoReturn:
    pickles = [name for name in top if _PICKLES.fullmatch(name)]
    if pickles:
        shown = ", ".join(map(printable, pickles[:_SHOWN]))
        message = f"holds only pickled weights, which can run code: {shown}"
        hint = "--allow-pickle pulls them; every command that reads them needs the flag, too"
        raise InputError(message, code=Code.PICKLE_ONLY, file=place, hint=hint)
    message = "no adapter and no model here: no weights in safetensors"
    if any(name.endswith(_LONE) for name in top):
        message = "holds weights, but none under a name that loaders ask for"
    inner = _file_hint(top, place) or _folder_hint(names, place)
    raise UsageError(message, code=Code.CHECKPOINT_MISSING, file=place, hint=inner)


def _file_hint(top: Sequence[str], place: str) -> str | None:
    """The weights whose names say not which of them are meant."""
    found = [f"{place}/{printable(name)}" for name in top if name.endswith(_LONE)]
    return f"name one of its files: {', '.join(found[:_SHOWN])}" if found else None


def _folder_hint(names: Sequence[str], place: str) -> str | None:
    """The folders that hold weights."""
    inside = {name.rpartition("/")[0] for name in names if name.endswith(WEIGHTS_SUFFIX)}
    found = [f"{place}/{printable(folder)}" for folder in sorted(inside - {""})[:_SHOWN]]
    return f"name one of its folders: {', '.join(found)}" if found else None
