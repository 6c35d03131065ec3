"""Sizes as people write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]?I?B)?", re.IGNORECASE | re.ASCII)
# Decimal, as the Hub's client reads `max_shard_size="5GB"`; the binary ones are spelled out.
_FACTORS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def bytes_of(text: str) -> int | None:
    """Bytes in `5GB`, `500MB`, `2GiB`, `1048576`; None where it is no size."""
    match = _SIZE.fullmatch(text.strip())
    unit = (match[2] or "B").upper() if match else ""
    if match is None or unit not in _FACTORS:
        return None
    number = float(match[1]) if "." in match[1] else int(match[1])
    return int(number * _FACTORS[unit])
