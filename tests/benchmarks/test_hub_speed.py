"""The benchmark of the Hub works, on a model that takes no time."""

from __future__ import annotations

from pathlib import Path

import pytest

import hub_speed


@pytest.mark.slow
def test_benchmark_times_merges_from_and_to_a_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each; only those that pass files on hold any under TMPDIR."""
    assert hub_speed.main(["--size", "tiny", "--rounds", "1", "--folder", str(tmp_path)]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row[:20].strip() for row in rows] == list(hub_speed.NAMES)
    shards = [float(row.split()[-1]) for row in rows]
    assert shards[0] == 0
    assert all(each > 0 for each in shards[1:])
