"""What may be pushed: the files of an artifact, no pickle, no stray file, no token."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from adaptool.errors import AdaptoolError, InputError, gathered
from adaptool.findings import Code
from adaptool.remote.failures import TOKEN
from adaptool.store.adapter_files import CONFIG_FILE, TOKENIZER_FILES, config_beside
from adaptool.store.digest import digest_of_bytes, git_digest
from adaptool.store.local import LocalSource, unreadable
from adaptool.store.model_card import CARD_FILE
from adaptool.store.own_files import SIDECARS, receipt_outputs
from adaptool.store.placement import OURS
from adaptool.store.safe_names import is_safe, printable
from adaptool.store.weight_files import INDEX_SUFFIX, PIPELINE_FILE, WEIGHTS_SUFFIX

_CHUNK = 4 << 20
_OVERLAP = 64  # bytes kept of the chunk before, so that a token cut in two is found
_LONGEST_HEADER = 100_000_000
_PICKLES = re.compile(r".*\.(?:bin|pt|pth|ckpt|pkl|pickle|joblib)", re.IGNORECASE)
_WEIGHTS = (WEIGHTS_SUFFIX, ".st", ".gguf")
_KNOWN = TOKENIZER_FILES | {
    *(CONFIG_FILE, PIPELINE_FILE, CARD_FILE, "config.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("image_processor.json", "quantize_config.json", "modules.json"),
    *("sentence_bert_config.json", "config_sentence_transformers.json"),
}
_KNOWN_FORM = re.compile(r"(?:LICEN[CS]E|NOTICE|USE_POLICY)[\w.-]*|[\w.-]+\.(?:tiktoken|model)")
# Left behind without a word: ours, the Hub's own, and what its client keeps beside a download.
_SKIPPED = OURS | {".gitattributes"}
_CLIENTS_OWN = Path(".cache", "huggingface")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A file to push: its name there, bytes, sha256, git's name of it, and where it lies.

    `content` is a path, or the bytes of what was made here.
    """

    name: str
    size: int
    sha256: str
    oid: str
    content: Path | bytes

    @classmethod
    def made(cls, name: str, content: bytes) -> Self:
        """A file that was made here."""
        git = git_digest(len(content))
        git.update(content)
        return cls(name, len(content), digest_of_bytes(content), git.hexdigest(), content)


def outgoing(path: Path) -> tuple[Outgoing, ...]:
    """The files of the artifact at `path`, a directory or one file, sorted by name.

    With one file goes the adapter_config.json beside it, where it has no config of its own.
    InputError (exit 3), carrying all of them, for pickles, tokens, and files that neither a receipt
    accounts for nor any loader of models asks for.
    """
    if not path.is_dir():
        found = [(path.name, path)]
        accounted = {path.name}
    else:
        found = sorted(_files(path))
        accounted = {entry["name"] for entry in receipt_outputs(path) or ()}
    errors = [_problem(name, file, accounted) for name, file in found]
    refused = [error for error in errors if error is not None]
    if refused:
        raise gathered(refused)
    config = None if path.is_dir() else config_beside(path)
    found += [] if config is None else [(config.name, config)]
    files, leaks = [], list[AdaptoolError]()
    for name, file in sorted(found):
        with LocalSource(file) as source:
            files.append(digested(name, source))
            if _holds_token(source, whole=not name.endswith(_WEIGHTS)):
                leaks.append(_leak(file))
    if leaks:
        raise gathered(leaks)
    return tuple(files)


def check_sendable(files: Iterable[tuple[str, Path | bytes]]) -> None:
    """InputError (exit 3), carrying all of them, for pickles and texts with access tokens in them.

    `files` are names with a file to be copied, or with bytes: what will be sent, not there yet.
    """
    refused: list[AdaptoolError] = []
    for name, content in files:
        if _PICKLES.fullmatch(name):
            refused.append(_pickle(printable(name)))
        elif _leaks(name, content):
            refused.append(_leak(content if isinstance(content, Path) else Path(name)))
    if refused:
        raise gathered(refused)


def _leaks(name: str, content: Path | bytes) -> bool:
    if isinstance(content, bytes):
        return TOKEN.search(content) is not None
    with LocalSource(content) as source:
        return _holds_token(source, whole=not name.endswith(_WEIGHTS))


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(root, onerror=_refuse_folder):
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if here / name != _CLIENTS_OWN]
        kept = (name for name in names if folder != str(root) or name not in _SKIPPED)
        yield from (((here / name).as_posix(), Path(folder, name)) for name in kept)


def _problem(name: str, path: Path, accounted: set[str]) -> AdaptoolError | None:
    file = printable(str(path))
    if _PICKLES.fullmatch(name):
        return _pickle(file)
    if not is_safe(name) or not (name in accounted or _is_known(name)):
        message = "is no file of an adapter or a model, and no receipt accounts for it"
        hint = "move it away: what is pushed can be read by others"
        return InputError(message, code=Code.STRAY_FILE, file=file, hint=hint)
    return None


def _pickle(file: str) -> AdaptoolError:
    message, hint = "is a pickle, which can run code", "convert it, or move it away"
    return InputError(message, code=Code.PICKLE_FILE, file=file, hint=hint)


def _is_known(name: str) -> bool:
    if name in _KNOWN or name in SIDECARS or _KNOWN_FORM.fullmatch(name):
        return True
    return "/" not in name and name.endswith((*_WEIGHTS, INDEX_SUFFIX))


def digested(name: str, source: LocalSource) -> Outgoing:
    """The file behind `source`, read once."""
    sha256 = hashlib.sha256()
    git = git_digest(source.size)
    for start in range(0, source.size, _CHUNK):
        chunk = source.read(start, min(_CHUNK, source.size - start))
        sha256.update(chunk)
        git.update(chunk)
    return Outgoing(name, source.size, sha256.hexdigest(), git.hexdigest(), source.path)


def _holds_token(source: LocalSource, *, whole: bool) -> bool:
    """Whether an access token stands in the text, or in the header of weights."""
    end = source.size if whole else _header_end(source)
    before = b""
    for start in range(0, end, _CHUNK):
        chunk = source.read(start, min(_CHUNK, end - start))
        if TOKEN.search(before + chunk):
            return True
        before = chunk[-_OVERLAP:]
    return False


def _header_end(source: LocalSource) -> int:
    if source.size < 8:
        return source.size
    length = int.from_bytes(source.read(0, 8), "little")
    # A file that does not begin with the header's length keeps its metadata in front as well.
    return min(source.size, 8 + length if length <= _LONGEST_HEADER else _CHUNK)


def _leak(path: Path) -> AdaptoolError:
    message = "holds an access token of the Hub (hf_...)"
    hint = "remove it, and revoke the token: it may have been copied already"
    return InputError(message, code=Code.SECRET_FOUND, file=printable(str(path)), hint=hint)


def _refuse_folder(error: OSError) -> NoReturn:
    path = Path(error.filename)
    raise unreadable(error, path, printable(str(path))) from error
