"""Foreign text: names that may become paths, and names that may reach a terminal.

Checks are lexical. A `realpath` containment check would refuse the Hugging Face cache, whose
files are symlinks out of their directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PureWindowsPath
from unicodedata import category

from adaptool.errors import InputError
from adaptool.findings import Code

MOST_COMPONENT_BYTES = 255
RESERVED = frozenset({".git", ".cache"})
# Characters that change how the text around them reads: bidirectional marks and overrides.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Unicode categories no file name needs: control, surrogate, line and paragraph separators.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def printable(text: str, *, most: int | None = None) -> str:
    r"""`text` with whatever a terminal may act on written as `\x1b` or `\u202e`.

    Escaping twice changes nothing. `most` cuts the result to that many characters.
    """
    if not text.isprintable():
        text = "".join(map(_visible, text))
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    return text


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def check_relative(name: str, *, file: str, field: str) -> str:
    """`name` itself where it is safe below a directory on every system; InputError otherwise.

    `file` and `field` say where the name was read. Refused: absolute names, drives, `..`,
    backslashes, control and bidirectional characters, components that are empty, longer than 255
    bytes or reserved (`.git`, `.cache`).
    """
    problem = _problem(name)
    if problem is None:
        return name
    message = f"{printable(name, most=200)!r} {problem}"
    hint = "do not use this artifact unless you trust where it comes from"
    raise InputError(message, code=Code.PATH_UNSAFE, file=file, field=field, hint=hint)


def is_safe(name: str) -> bool:
    """Whether `check_relative` lets `name` pass."""
    return _problem(name) is None


def check_distinct(names: Iterable[str], *, file: str, field: str) -> None:
    """Refuse two names that are one file where case does not count (InputError)."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            message = f"{printable(name)!r} and {printable(other)!r} differ only in case"
            raise InputError(message, code=Code.PATH_UNSAFE, file=file, field=field)


def _problem(name: str) -> str | None:
    """Why `name` is unsafe as a relative path, in words that follow it."""
    if not name:
        return "is empty"
    if any(c in _BIDI or category(c) in _UNSAFE_CATEGORIES for c in name):
        return "holds control characters"
    windows = PureWindowsPath(name)
    if windows.drive or windows.root:
        return "is an absolute path"
    if ".." in windows.parts:
        return "leaves its directory"
    if "\\" in name:
        return "holds a backslash, which is a folder on some systems"
    return _component_problem(name.split("/"))


def _component_problem(components: list[str]) -> str | None:
    for component in components:
        if component in {"", "."}:
            return "holds an empty component"
        if len(component.encode()) > MOST_COMPONENT_BYTES:
            return f"holds a component longer than {MOST_COMPONENT_BYTES} bytes"
        if component.casefold() in RESERVED:
            return f"uses the reserved name {component!r}"
    return None
