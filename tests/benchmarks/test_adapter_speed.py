"""The benchmark of adapter space works, on adapters that take no time."""

from __future__ import annotations

from pathlib import Path

import pytest

import adapter_speed


@pytest.mark.slow
def test_benchmark_times_every_contender(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One round on the tiny size prints a row for each, PEFT's among them."""
    assert adapter_speed.main(["--size", "tiny", "--rounds", "1", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("resize 64 -> 8", "combine cat", "combine ties", "PEFT svd", "PEFT ties_svd"):
        assert sum(line.startswith(f"{name} ") for line in printed.splitlines()) == 1
