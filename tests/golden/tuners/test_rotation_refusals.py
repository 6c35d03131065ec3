"""Rotations, reflections and spectra that no weight can hold, or that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import OFTConfig, RandLoraConfig, ShiraConfig, VBLoRAConfig, get_peft_model
from safetensors.torch import load_file, save_file

import adaptool
from adaptool.errors import AdaptoolError
from golden_cases import load, quietly, save_base
from tiny_models import build
from tuner_cases import train

LLAMA = ["q_proj", "down_proj"]
BANK = {"r": 2, "num_vectors": 20, "vector_length": 8, "topk": 2, "save_only_topk_weights": True}


def _saved(model: str, config: object, where: Path) -> tuple[Path, Path]:
    base, adapter = where / "base", where / "adapter"
    with quietly():
        save_base(build(model), base)
        tuned = get_peft_model(load(model, base), config)
        train(tuned)
        tuned.save_pretrained(adapter)
    return base, adapter


def _edited(adapter: Path, ending: str, value: torch.Tensor | None) -> None:
    """Put `value` in place of every tensor whose name ends so; None removes them."""
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(ending)]:
        found = tensors.pop(name)
        if value is not None:
            tensors[name] = value.to(found.dtype).expand_as(found).contiguous()
    save_file(tensors, path, {"format": "pt"})


def _refusal(base: Path, adapter: Path, out: Path) -> AdaptoolError:
    with pytest.raises(AdaptoolError) as caught:
        adaptool.merge(base, adapter, out)
    assert not out.exists()
    return caught.value


def test_oft_of_a_kernel_is_refused(tmp_path: Path) -> None:
    """PEFT's forward adds up overlapping patches, which its own merge does not do."""
    config = OFTConfig(oft_block_size=9, target_modules=["conv2"])
    error = _refusal(*_saved("convnet", config, tmp_path), tmp_path / "out")
    assert (error.exit, error.code) == (4, "tuner-not-mergeable")
    assert "[3, 3]" in error.message


def test_first_oft_layout_is_refused(tmp_path: Path) -> None:
    """Up to PEFT 0.13 there was no scale, and outputs were turned."""
    config = OFTConfig(oft_block_size=8, target_modules=LLAMA)
    base, adapter = _saved("llama", config, tmp_path)
    path = adapter / "adapter_model.safetensors"
    older = {
        name.replace("oft_R.weight", "oft_r"): torch.zeros(len(value), 8, 8)
        for name, value in load_file(path).items()
    }
    save_file(older, path, {"format": "pt"})
    error = _refusal(base, adapter, tmp_path / "out")
    assert (error.exit, error.code) == (4, "tuner-unsupported")


def test_place_outside_of_the_weight_names_the_numbers(tmp_path: Path) -> None:
    """SHiRA's indices are checked against the layer before anything is added."""
    base, adapter = _saved("llama", ShiraConfig(r=2, target_modules=LLAMA), tmp_path)
    _edited(adapter, "shira_indices", torch.tensor(99))
    error = _refusal(base, adapter, tmp_path / "out")
    assert error.exit == 4
    assert "99" in error.message


def test_vector_outside_of_the_bank_names_the_numbers(tmp_path: Path) -> None:
    """VB-LoRA's indices are checked against the bank."""
    base, adapter = _saved("llama", VBLoRAConfig(**BANK, target_modules=LLAMA), tmp_path)
    _edited(adapter, "logits_A_topk_indices", torch.tensor(33))
    error = _refusal(base, adapter, tmp_path / "out")
    assert error.exit == 3
    assert "33" in error.message
    assert "20" in error.message


def test_half_a_pair_of_projections_is_refused(tmp_path: Path) -> None:
    """RandLoRA's A without B is neither stored nor drawn again."""
    config = RandLoraConfig(r=4, target_modules=LLAMA)
    base, adapter = _saved("llama", config, tmp_path)
    _edited(adapter, "randlora_B", None)
    error = _refusal(base, adapter, tmp_path / "out")
    assert (error.exit, error.code) == (3, "factor-missing")
