"""Whether the files of an artifact are those that its sums were taken of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from adaptool.errors import InputError
from adaptool.findings import Code, Finding, Severity
from adaptool.store.digest import sha256_of
from adaptool.store.local import LocalSource
from adaptool.store.occupied import files_under
from adaptool.store.own_files import RECEIPT, SIDECARS, SUMS
from adaptool.store.safe_names import is_safe, printable
from adaptool.store.sums import known_sums

_AGAIN = "download it again, or make it again"
_WEIGHTS = (".safetensors", ".st", ".gguf", ".bin", ".pt")


def integrity_findings(path: Path) -> tuple[Finding, ...]:
    """Findings about the directory `path`, or about the file `path` by the sums beside it.

    An error for each file that is missing or has other bytes, and where there is nothing to
    compare with; a warning for weights that no sum is known of. Reads every byte.
    """
    single = not path.is_dir()
    root = path.parent if single else path
    try:
        known = known_sums(root)
    except InputError as error:
        return (error.as_finding(),)
    if single:
        known = {name: sums for name, sums in known.items() if name == path.name}
    if not known:
        message = f"neither {SUMS} nor {RECEIPT} has a sha256 of it"
        hint = "write it with --checksum, or with sha256sum"
        return (_finding(Severity.ERROR, path, message, hint),)
    found = [each for name, sums in sorted(known.items()) for each in _compared(root, name, sums)]
    return (*found, *(() if single else _unknown(root, known)))


def _compared(root: Path, name: str, sums: Mapping[str, str]) -> Iterator[Finding]:
    if not is_safe(name):
        yield _finding(Severity.ERROR, root, f"{printable(name)!r} is no file of it", _AGAIN)
        return
    if not os.path.lexists(root / name):
        yield _finding(Severity.ERROR, root / name, f"is missing; {next(iter(sums))} lists it")
        return
    try:
        with LocalSource(root / name) as source:
            digest = sha256_of(source)
    except InputError as error:
        yield error.as_finding()
        return
    for said_by, expected in sums.items():
        if digest != expected:
            message = f"has the sha256 {digest}, {said_by} says {printable(expected, most=64)}"
            yield _finding(Severity.ERROR, root / name, message)


def _unknown(root: Path, known: Mapping[str, object]) -> Iterator[Finding]:
    for name, _ in files_under(root):
        if "/" not in name and name.endswith(_WEIGHTS) and name not in {*known, *SIDECARS}:
            message = "no sha256 of these weights is known"
            yield _finding(Severity.WARNING, root / name, message, "was it added later?")


def _finding(severity: Severity, file: Path, message: str, hint: str = _AGAIN) -> Finding:
    return Finding(Code.INTEGRITY, severity, message, file=printable(str(file)), hint=hint)
