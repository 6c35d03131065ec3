"""Files of older releases of PEFT against what those releases merged (`make_older_tuners.py`)."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

import pytest
from safetensors.torch import load_file

import adaptool
from golden_cases import tensors_of

OLDER = Path(__file__).parent / "older"
CASES = sorted(path.name for path in OLDER.iterdir() if path.is_dir())


@pytest.mark.parametrize("case", CASES)
def test_merge_agrees_with_the_release_that_trained_it(case: str, tmp_path: Path) -> None:
    """Every tensor within 2e-5 of that PEFT's, all weights changed."""
    base = tmp_path / "base"
    base.mkdir()
    copyfile(OLDER / "base.safetensors", base / "model.safetensors")
    adaptool.merge(base, OLDER / case, tmp_path / "out")
    ours, theirs = tensors_of(tmp_path / "out"), load_file(OLDER / case / "merged.safetensors")
    before = load_file(OLDER / "base.safetensors")
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        difference = float((ours[name] - value).norm() / value.norm())
        assert difference <= 2e-5, name
    changed = {name for name, value in ours.items() if not value.equal(before[name])}
    assert changed
