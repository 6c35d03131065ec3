"""A word that an option does not know is the library's own error, not Python's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import adaptool
from command_line import ADAPTER, BASE

CALLS: dict[str, Callable[[Path], object]] = {
    "resize": lambda out: adaptool.resize(ADAPTER, out, rank=1, dtype="float"),
    "combine": lambda out: adaptool.combine(ADAPTER, out=out, dtype="float"),
    "extract": lambda out: adaptool.extract(BASE, BASE, out, rank=1, dtype="float"),
    "convert": lambda out: adaptool.convert(ADAPTER, out, to="peft", expert_packing="x"),
}


@pytest.mark.parametrize("verb", CALLS)
def test_an_unknown_word_is_a_usage_error(verb: str, tmp_path: Path) -> None:
    """It names those that there are, and nothing is written."""
    with pytest.raises(adaptool.UsageError, match="is none of"):
        CALLS[verb](tmp_path / "out")
    assert not (tmp_path / "out").exists()
