"""extract(base, tuned), loaded by PEFT on the base, is the tuned model, in every family."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

import adaptool
from family_models import FAMILIES
from golden_cases import quietly
from peft_judge import furthest, load, save_base, under, weights

ROUNDING = 5e-5
# A multimodal model, experts one by one on disk, positions with an offset, routers of their own.
FAST = ("llava", "jamba", "gpt_oss", "whisper")
# Their mixers read the weights of modules that they never call, which PEFT refuses to wrap.
NOT_IN_PEFT = {"mamba", "mamba2", "falcon_mamba", "zamba2", "nemotron_h", "falcon_h1"}
# Kernels of several groups, across which PEFT's delta goes, and norms split in two tensors.
OTHERWISE = {"wav2vec2"}
# Tied whatever the config says: PEFT's merge_and_unload adds each name's change to all of them.
TIED_ANYWAY = {"t5", "flan_t5", "umt5"}
EVERY = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in FAMILIES
    if name not in NOT_IN_PEFT | OTHERWISE | TIED_ANYWAY
]


def _changed(family: str, base: Path, where: Path, *, whole: bool = False) -> Path:
    """The base with a change in every matrix: of rank 2, or of full rank."""
    model = load(family, base)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            path, _, leaf = name.rpartition(".")
            # PEFT's merge_and_unload leaves the modules inside a wrapped module wrapped.
            if leaf != "weight" and any(model.get_submodule(path).children()):
                continue
            if parameter.dim() > 1 and min(parameter.shape[:2]) > 1:
                parameter.add_(0.05 * _step(parameter, whole=whole))
    model.save_pretrained(where)
    return where


def _step(parameter: torch.Tensor, *, whole: bool) -> torch.Tensor:
    if whole:
        return torch.randn_like(parameter)
    stacked = parameter.dim() == 3 and parameter.shape[0] <= 8
    shape = (parameter.shape[0], parameter.shape[1]) if stacked else parameter.shape[:1]
    left = torch.randn(*shape, 2)
    rest = parameter[0].numel() if not stacked else parameter.shape[2]
    right = torch.randn(*shape[:-1], 2, rest)
    return (left @ right).reshape(parameter.shape)


@pytest.mark.parametrize("family", EVERY)
def test_peft_makes_the_tuned_model_of_the_extracted_adapter(family: str, tmp_path: Path) -> None:
    """Every matrix changed by rank 2: names of modules, kinds of layers and stacks are PEFT's."""
    base = save_base(family, tmp_path / "base", untied=True)
    tuned = _changed(family, base, tmp_path / "tuned")
    adaptool.extract(base, tuned, tmp_path / "adapter", rank=2)
    wanted = weights(load(family, tuned))
    found = under(family, base, tmp_path / "adapter", whole=False)
    assert furthest(found, wanted, weights(load(family, base))) < ROUNDING


@pytest.mark.parametrize("family", ["bert", pytest.param("t5", marks=pytest.mark.slow)])
def test_peft_loads_an_adapter_of_whole_tensors_alone(family: str, tmp_path: Path) -> None:
    """PEFT wants one module that it targets: one gets factors of zeros."""
    base = save_base(family, tmp_path / "base")
    model = load(family, base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layers.0.layer_norm1.weight") or "LayerNorm" in name:
                parameter.add_(1)
            if name.endswith("layer_norm.weight"):
                parameter.add_(1)
    model.save_pretrained(tmp_path / "tuned")
    adaptool.extract(base, tmp_path / "tuned", tmp_path / "adapter", rank=2)
    found = under(family, base, tmp_path / "adapter", whole=False)
    assert furthest(found, weights(model), weights(load(family, base))) < ROUNDING


@pytest.mark.parametrize("kept", [{"rank": 2}, {"energy": 1.0}], ids=["factors", "whole"])
@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_tied_base_becomes_what_the_tuned_model_is(
    family: str, untied: bool, kept: dict[str, Any], tmp_path: Path
) -> None:
    """Its embedding changed, its head with it or not: PEFT's forward is the tuned model's."""
    base = tmp_path / "base"
    model = _tied(family)
    model.save_pretrained(base)
    tuned = _tied(family)
    with torch.no_grad():
        table = tuned.get_input_embeddings()
        if untied:
            tuned.lm_head.weight = nn.Parameter(table.weight.clone())
            tuned.config.tie_word_embeddings = False
        step = torch.randn(table.weight.shape[0], 2) @ torch.randn(2, table.weight.shape[1])
        table.weight.add_(0.1 * (step if "rank" in kept else torch.randn_like(step)))
    tuned.save_pretrained(tmp_path / "tuned")
    adaptool.extract(base, tmp_path / "tuned", tmp_path / "adapter", **kept)
    with quietly():
        adapted = PeftModel.from_pretrained(load(family, base), tmp_path / "adapter").eval()
    wanted, plain = _logits(load(family, tmp_path / "tuned")), _logits(load(family, base))
    assert (_logits(adapted) - wanted).abs().max() < ROUNDING * (wanted - plain).abs().max()


def _tied(family: str) -> Any:
    """The family's model with one matrix for embedding and head."""
    import transformers

    settings = {**FAMILIES[family].settings, "tie_word_embeddings": True}
    torch.manual_seed(3)
    config = getattr(transformers, FAMILIES[family].config)(**settings)
    return getattr(transformers, FAMILIES[family].kind)(config).eval()


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(12).reshape(2, 6) + 3).logits
    return found


@pytest.mark.parametrize(
    "family",
    [
        "mixtral",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("qwen3_moe", "deepseek_v3", "llava", "qwen2_vl")
        ),
    ],
)
def test_checkpoints_under_both_namings_are_of_one_model(family: str, tmp_path: Path) -> None:
    """One as the Hub has it, one under the library's names: either way round, and in diff."""
    base = save_base(family, tmp_path / "base")
    tuned = _changed(family, base, tmp_path / "tuned")
    renamed = tmp_path / "renamed"
    shutil.copytree(tuned, renamed)
    model = load(family, tuned)
    save_file(
        {n: v.contiguous() for n, v in model.state_dict().items()},
        renamed / "model.safetensors",
        {"format": "pt"},
    )
    adaptool.extract(base, renamed, tmp_path / "adapter", rank=2)
    found = under(family, base, tmp_path / "adapter", whole=False)
    assert furthest(found, weights(model), weights(load(family, base))) < ROUNDING
    there = adaptool.extract(renamed, base, tmp_path / "back", rank=2)
    assert {each.module for each in there.modules} == {
        each.module for each in adaptool.extract(base, renamed, tmp_path / "again", rank=2).modules
    }
    same = adaptool.diff(tuned, renamed)
    assert (same.relative_error, same.only_in_a, same.only_in_b) == (0.0, (), ())
