"""What stands after a flag, parsed: sizes, weights, devices, paths. A bad one is exit 2."""

from __future__ import annotations

import math
import re
from pathlib import Path

import click

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.byte_sizes import bytes_of
from adaptool.model.options import Strength

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,4})?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HUB = "hf://"
_PAGE = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")


def size(text: str) -> int:
    """Bytes in `5GB`, `500MB`, `2GiB`, `1048576`."""
    count = bytes_of(text)
    if count is None:
        message = f"{text!r} is no size; write it as 5GB, 500MB or 2GiB"
        raise click.BadParameter(message)
    if count < 1:
        message = f"{text!r} is less than one byte"
        raise click.BadParameter(message)
    return count


def size_or_keep(text: str) -> int | None:
    """Bytes, or None for `keep`."""
    return None if text == "keep" else size(text)


def number(text: str) -> float:
    """A finite number."""
    found = _float(text)
    if found is None or not math.isfinite(found):
        message = f"{text!r} is no finite number"
        raise click.BadParameter(message)
    return found


def numbers(text: str) -> tuple[float, ...]:
    """Finite numbers between commas."""
    return tuple(number(part.strip()) for part in text.split(","))


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def device(text: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    if not _DEVICE.fullmatch(text):
        message = f"{text!r} is no device; write auto, cpu, cuda or cuda:N"
        raise click.BadParameter(message)
    return text


def artifact(text: str) -> Path:
    """An input: a path of this machine, or `hf://owner/name...`, which is pulled for the run."""
    page = _PAGE.match(text)
    if page is not None:
        message, hint = "is a page of the Hub, no address of an artifact", f"write hf://{page[1]}"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=text, hint=hint)
    return Path(text) if text.startswith(_HUB) and "\0" not in text else local_path(text)


def destination(text: str) -> Path:
    """OUT: a path of this machine, or `hf://owner/name[@branch][/folder]`, one commit there."""
    return artifact(text)


def local_path(text: str) -> Path:
    """A path of this machine; a URI is exit 4."""
    if _SCHEME.match(text):
        message = "only a path of this machine can stand here"
        hint = "adaptool pull downloads from hf:// addresses, adaptool push sends there"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=text, hint=hint)
    if not text or "\0" in text:
        message = f"{text!r} is no path"
        raise click.BadParameter(message)
    return Path(text)


def strength(text: str) -> Path | Strength:
    """`ADAPTER` or `ADAPTER=W`; a folder whose name ends in `=2` is meant where it exists."""
    left, equals, right = text.rpartition("=")
    whole = artifact(text)
    if not equals or not left:
        return whole
    weighs, exists = _float(right) is not None, Path(left).exists()
    if not whole.exists() and (weighs or exists):
        return Strength(artifact(left), number(right))
    if whole.exists() and weighs and exists:
        message = f"{text!r} can mean two adapters; add the weight: {text}=1"
        raise click.BadParameter(message)
    return whole
