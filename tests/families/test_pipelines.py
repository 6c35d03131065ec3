"""A diffusers pipeline is several models: each of them is a base, the whole is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import adaptool
from adaptool.errors import UsageError
from adaptool.findings import Code
from adaptool.model.results import CheckpointSummary

COMPONENTS = ("text_encoder", "transformer", "vae")


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Three models with weights, a scheduler without, and the original checkpoint at the top."""
    root = tmp_path / "pipeline"
    for name in COMPONENTS:
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        save_file({"x.weight": torch.zeros(3, 3)}, folder / "diffusion_pytorch_model.safetensors")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text("{}")
    (root / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    save_file({"y": torch.zeros(1)}, root / "flux1-dev.safetensors")
    return root


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """One linear layer's factors, all ones."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    tensors = {f"base_model.model.x.lora_{f}.weight": torch.ones(s) for f, s in FACTORS.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["x"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


FACTORS = {"A": (2, 3), "B": (3, 2)}
VERBS: dict[str, Callable[[Path, Path, Path], Any]] = {
    "merge": adaptool.merge,
    "verify": lambda base, adapter, _: adaptool.verify(base, adapter, base),
    "inspect": lambda base, _adapter, _out: adaptool.inspect(base),
    "validate": lambda base, adapter, _: adaptool.validate(adapter, base=base),
}


@pytest.mark.parametrize("verb", VERBS)
def test_pipeline_is_no_base_and_its_models_are_named(
    verb: str, pipeline: Path, adapter: Path, tmp_path: Path
) -> None:
    """The models that have weights are listed; the hint names the one to begin with."""
    with pytest.raises(UsageError) as caught:
        VERBS[verb](pipeline, adapter, tmp_path / "out")
    assert caught.value.code is Code.CHECKPOINT_MISSING
    assert ": text_encoder, transformer, vae" in caught.value.message
    assert caught.value.file == str(pipeline)
    assert caught.value.hint is not None
    assert str(pipeline / "transformer") in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_pipeline_of_pickles_says_to_name_a_model(pipeline: Path, adapter: Path) -> None:
    """Nothing can be listed where no folder holds safetensors."""
    for name in COMPONENTS:
        (pipeline / name / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UsageError, match="pipeline") as caught:
        adaptool.merge(pipeline, adapter, pipeline / "out")
    assert caught.value.hint == "name the directory of one of its models"


def test_model_of_a_pipeline_is_a_base(pipeline: Path, adapter: Path, tmp_path: Path) -> None:
    """Its weights under their own name, its config beside them, nothing of the rest."""
    base, out = pipeline / "transformer", tmp_path / "out"
    adaptool.merge(base, adapter, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "adaptool.json",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert adaptool.verify(base, adapter, out, exact=True).ok


def test_file_at_the_top_of_a_pipeline_may_be_named(pipeline: Path) -> None:
    """The single file is a model of its own."""
    found = adaptool.inspect(pipeline / "flux1-dev.safetensors")
    assert isinstance(found, CheckpointSummary)
