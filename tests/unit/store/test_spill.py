"""Working bytes on the output's disk: kept under their offset, gone with the run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adaptool.errors import InternalError, OutputError
from adaptool.store.spill import Spill


def test_what_several_threads_append_is_read_back(tmp_path: Path) -> None:
    """Every piece under the offset that its writer was told, and no name on the disk."""
    pieces = [bytes([number]) * (number * 37) for number in range(50)]
    with Spill(tmp_path) as spill, ThreadPoolExecutor(4) as pool:
        offsets = list(pool.map(spill.append, pieces))
        for piece, offset in zip(pieces, offsets, strict=True):
            found = bytearray(len(piece))
            spill.read_into(offset, memoryview(found))
            assert found == piece
        assert spill.size == sum(map(len, pieces))
        assert list(tmp_path.iterdir()) == []


def test_reading_past_the_end_is_a_bug_of_ours(tmp_path: Path) -> None:
    """Nothing is made up."""
    with Spill(tmp_path) as spill, pytest.raises(InternalError):
        spill.read_into(0, memoryview(bytearray(1)))


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    """Exit 5, not a traceback."""
    with Spill(tmp_path / "missing") as spill, pytest.raises(OutputError):
        spill.append(b"stream")
