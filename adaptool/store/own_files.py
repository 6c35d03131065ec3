"""The files that adaptool writes beside an output's own, and what its receipt lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptool.store.journal import read_record

RECEIPT = "adaptool.json"
SUMS = "SHA256SUMS"
SIDECARS = frozenset({RECEIPT, SUMS, "adaptool.unmerge"})
"""Written beside the outputs that a receipt lists."""

LARGEST_RECEIPT = 64 * 1024 * 1024


def receipt_outputs(root: Path) -> list[Mapping[str, Any]] | None:
    """The files that the receipt in `root` lists, each with a name at least.

    None where no receipt is there, or none that can be read.
    """
    receipt = read_record(root / RECEIPT)
    return None if receipt is None else listed_outputs(receipt)


def listed_outputs(receipt: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files that a receipt lists; what is no such entry is passed over."""
    outputs = receipt.get("outputs")
    rows = outputs if isinstance(outputs, list) else []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("name"), str)]
