"""TinyLoRA: which module takes which vector, told by the file alone or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adaptool import convert, merge
from golden_cases import tensors_of
from in_process import refused
from tuner_cases import Case, Example, Pair, make

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


@pytest.mark.parametrize("tying", [0.0, 0.4, 0.5, 1.0])
def test_lora_of_tied_modules_merges_to_the_same(tying: float, tmp_path: Path) -> None:
    """Where the number of vectors tells how many modules share one, no base is needed."""
    options = {**TIED, "weight_tying": tying}
    _check_lora(make(_case(Example("llama", options), 92), tmp_path), None, tmp_path)


def test_base_tells_how_many_modules_there_are(tmp_path: Path) -> None:
    """Three modules take two vectors at 0.5, one each but for the last; four take them in pairs."""
    options = {**TIED, "target_modules": ["q_proj", "k_proj"]}
    pair = make(_case(Example("llama", options), 93), tmp_path)
    error = refused(4, "convert", pair.adapter, tmp_path / "unknown", "--to", "lora")
    assert "how many modules share a vector" in str(error["message"])
    _check_lora(pair, pair.base, tmp_path)


def _check_lora(pair: Pair, base: Path | None, tmp_path: Path) -> None:
    convert(pair.adapter, tmp_path / "lora", to="lora", base=base)
    merge(pair.base, tmp_path / "lora", tmp_path / "out")
    expected = pair.merged(tmp_path / "expected")
    for name, value in tensors_of(tmp_path / "out").items():
        assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-6), name
