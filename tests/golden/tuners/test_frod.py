"""FRoD: the model that was trained is the truth; PEFT's own loading may make another one of it."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import FrodConfig, get_peft_model

from adaptool import merge
from golden_cases import load, quietly, save_base
from in_process import refused
from tiny_models import answer, build
from tuner_cases import Case, Example, make, train

OPTIONS = {"target_modules": ["q_proj", "down_proj"], "progressbar": False}


def test_merged_model_computes_what_the_trained_one_did(tmp_path: Path) -> None:
    """Its U belongs to the basis that it saved."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    with quietly():
        save_base(build("llama"), base)
        tuned = get_peft_model(load("llama", base), FrodConfig(**OPTIONS)).eval()
        train(tuned)
        expected = answer(tuned, "llama")
        tuned.save_pretrained(adapter)
    merge(base, adapter, tmp_path / "out")
    found = answer(load("llama", tmp_path / "out"), "llama")
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_unsaved_bases_are_refused(tmp_path: Path) -> None:
    """They follow from every layer of a kind, and from how an eigensolver breaks ties."""
    options = {**OPTIONS, "save_projection": False}
    pair = make(Case("frod", Example("llama", options), 90), tmp_path)
    error = refused(4, "merge", pair.base, pair.adapter, tmp_path / "out")
    assert "save_projection=True" in str(error["hint"])
