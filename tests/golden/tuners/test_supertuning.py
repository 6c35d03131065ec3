"""Super-Tuning: what the file does not say is refused."""

from __future__ import annotations

from pathlib import Path

from in_process import refused
from tuner_cases import Case, Example, make


def test_unsaved_places_are_refused(tmp_path: Path) -> None:
    """Which of equal elements PEFT took, and in which order, no file tells."""
    options = {"target_modules": ["q_proj"], "save_precomputed_indices": False}
    pair = make(Case("supertuning", Example("llama", options), 90), tmp_path)
    error = refused(4, "merge", pair.base, pair.adapter, tmp_path / "out")
    assert "save_precomputed_indices=True" in str(error["hint"])
