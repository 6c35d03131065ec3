"""What is known of the files of a directory: SHA256SUMS, and the digests in a receipt."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.store.documents import read_document
from adaptool.store.own_files import RECEIPT, SUMS, receipt_outputs
from adaptool.store.safe_names import check_relative, printable

_LARGEST = 16 << 20
# A star instead of the second space says "binary": the bytes are the same here.
_LINE = re.compile(r"([0-9a-fA-F]{64})(?:  | \*)(.+)")


def known_sums(root: Path) -> Mapping[str, Mapping[str, str]]:
    """Of each file name in `root` the sha256 that it should have, by who says so.

    InputError where SHA256SUMS has lines that coreutils would not read, or names files elsewhere.
    """
    known: dict[str, dict[str, str]] = {}
    for said_by, sums in ((SUMS, _listed(root / SUMS)), (RECEIPT, _received(root))):
        for name, digest in sums.items():
            known.setdefault(name, {})[said_by] = digest
    return known


def _listed(file: Path) -> Mapping[str, str]:
    if not os.path.lexists(file):
        return {}
    raw = read_document(file, limit_bytes=_LARGEST, what="list of sums")
    name = printable(str(file))
    found = {}
    for number, line in enumerate(raw.decode(errors="replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            message = f"line {number} is not `SHA256  NAME`: {printable(line, most=80)!r}"
            hint = "write it with sha256sum"
            raise InputError(message, code=Code.INTEGRITY, file=name, hint=hint)
        where = check_relative(match[2].removeprefix("./"), file=name, field=f"line {number}")
        found[where] = match[1].lower()
    return found


def _received(root: Path) -> Mapping[str, str]:
    listed = receipt_outputs(root) or ()
    return {row["name"]: row["sha256"] for row in listed if isinstance(row.get("sha256"), str)}
