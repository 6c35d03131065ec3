"""TinyLoRA: which module takes which vector, told by the file alone or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from adaptool import convert, merge
from golden_cases import tensors_of
from in_process import refused
from tuner_cases import Case, Example, examples, make

TIED = {"r": 3, "u": 5, "weight_tying": 0.5, "target_modules": ["q_proj", "k_proj", "v_proj"]}


def _case(example: Example, place: int) -> Case:
    # The place names the folder; the examples of the laws have the first ones.
    return Case("tinylora", example, place)


def test_unsaved_projections_are_refused(tmp_path: Path) -> None:
    """The order of the layers stands in the model's code alone."""
    pair = make(_case(Example("llama", {**TIED, "save_projection": False}), 90), tmp_path)
    error = refused(4, "merge", pair.base, pair.adapter, tmp_path / "out")
    assert "save_projection=True" in str(error["hint"])


def test_projections_of_another_seed_are_refused(tmp_path: Path) -> None:
    """They would tell another order."""
    pair = make(_case(Example("llama", TIED), 91), tmp_path)
    config = pair.adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"projection_seed": 42', '"projection_seed": 99'))
    error = refused(3, "merge", pair.base, pair.adapter, tmp_path / "out")
    assert "projection_seed" in str(error)


def test_lora_of_tied_modules_merges_to_the_same(tmp_path: Path) -> None:
    """Where the number of vectors tells how many modules share one, no base is needed."""
    whole = next(found for found in examples("tinylora") if not found.note)
    for place, tying in enumerate((0.0, 0.4, 1.0)):
        example = replace(whole, options={**TIED, "weight_tying": tying})
        pair = make(_case(example, 92 + place), tmp_path)
        convert(pair.adapter, tmp_path / f"lora-{place}", to="lora")
        merge(pair.base, tmp_path / f"lora-{place}", tmp_path / f"out-{place}")
        expected = pair.merged(tmp_path / f"expected-{place}")
        for name, value in tensors_of(tmp_path / f"out-{place}").items():
            assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-6), name
