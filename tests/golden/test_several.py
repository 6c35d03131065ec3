"""Several adapters, weights, output dtypes, and what no weight can hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

import adaptool
import golden_cases
from adaptool.model.options import Strength
from golden_cases import BY_NAME, Case, Tensors, load, peft_merged, quietly, tensors_of
from rounding import nearest
from tiny_models import build

PAIRS = (
    ("plain", "rslora", "patterns"),
    ("plain", "dora", "dora_rslora"),
    ("embedding", "token_rows", "both_ends"),
    ("saved_head", "saved_norm", "head"),
    ("bias_all", "lora_bias", "opt"),
    ("mixtral_experts", "mixtral_down", "mixtral_attention"),
    ("gpt_oss_gate_up", "gpt_oss_experts_and_attention", "gpt_oss_down"),
    ("gpt2", "dora_gpt2", "lora_bias_gpt2"),
    ("convolutions", "dora_convolutions", "convolutions_rslora"),
    ("dora_ends", "both_ends", "dora_ends"),
)
# No round numbers: with 0.7 many sums lie on the middle of two float32 numbers but for float64's
# own last bit.
WEIGHTS = (0.71317, -0.41771, 1.25739)


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_sum_of_adapters_is_the_sum_of_their_changes(
    names: tuple[str, ...], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """W + sum of w_i (f_i(W) - W): each f_i is PEFT's merge in float64, the sum is rounded once."""
    made = [golden_cases.make(BY_NAME[name], tmp_path_factory.getbasetemp()) for name in names]
    base = tensors_of(made[0].base)
    exact = {name: value.double() for name, value in base.items()}
    for place, (one, weight) in enumerate(zip(made, WEIGHTS, strict=True)):
        changed = peft_merged(one, tmp_path / f"peft-{place}", torch.float64)
        for name, value in changed.items():
            exact[name] = exact[name] + weight * (value - base[name].double())
    first, *others = zip((one.adapter for one in made), WEIGHTS, strict=True)
    adaptool.merge(
        made[0].base,
        first[0],
        tmp_path / "out",
        weight=first[1],
        add=[Strength(path, weight) for path, weight in others],
    )
    _check_exact(exact, tensors_of(tmp_path / "out"))


def _check_exact(exact: Tensors, ours: Tensors) -> None:
    assert set(exact) == set(ours)
    different = {
        name: int((nearest(value, ours[name].dtype) != ours[name]).sum())
        for name, value in exact.items()
        if not torch.equal(nearest(value, ours[name].dtype), ours[name])
    }
    assert different == {}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["every_linear", "experts_bfloat16", "dora_float16", "embedding"])
def test_output_dtype_rounds_the_exact_result_once(
    name: str, dtype: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """--dtype: no detour over the base's dtype; what no adapter touches is converted too."""
    made = golden_cases.make(BY_NAME[name], tmp_path_factory.getbasetemp())
    adaptool.merge(made.base, made.adapter, tmp_path / "out", dtype=dtype)
    ours = tensors_of(tmp_path / "out")
    assert {value.dtype for value in ours.values()} == {getattr(torch, dtype)}
    _check_exact(peft_merged(made, tmp_path / "peft", torch.float64), ours)
    assert str(load(made.case.model, tmp_path / "out").dtype) == f"torch.{dtype}"


GROUPED = Case("grouped", "convnet", {"r": 4, "lora_alpha": 8, "target_modules": ["grouped"]})


def test_grouped_convolution_is_refused(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exit 4, and the message names the channels and the groups."""
    made = golden_cases.make(GROUPED, tmp_path_factory.getbasetemp())
    with pytest.raises(adaptool.AdaptoolError) as caught:
        adaptool.merge(made.base, made.adapter, tmp_path / "out")
    assert caught.value.exit_code == 4
    assert "all 12 channels" in str(caught.value)
    assert "2 groups" in str(caught.value)


def test_delta_of_a_grouped_convolution_crosses_its_groups() -> None:
    """Why no grouped kernel can hold PEFT's delta: group 0's output follows group 1's input."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv1d(12, 8, 3, groups=2))
    with quietly():
        tuned = get_peft_model(layer, LoraConfig(r=4, lora_alpha=8, target_modules=["0"]))
    golden_cases.train(tuned)
    signal = torch.randn(1, 12, 7)
    other = signal.clone()
    other[:, 6:] += 1
    with torch.inference_mode():
        adapted = (tuned(signal) - tuned(other))[:, :4].abs().max()
        with tuned.disable_adapter():
            plain = (tuned(signal) - tuned(other))[:, :4].abs().max()
    assert float(plain) == 0
    assert float(adapted) > 0.01


def test_attention_output_counts_twice_as_in_peft(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PEFT to 0.21.2 adds out_proj's delta twice, in training and in the merge (peft 3774)."""
    made = golden_cases.make(BY_NAME["attention"], tmp_path_factory.getbasetemp())
    result = adaptool.merge(made.base, made.adapter, tmp_path / "out")
    factors = load_file(made.adapter / "adapter_model.safetensors")
    prefix = "base_model.model.mha.base_layer.out_proj"
    delta = (
        2.0
        * factors[f"{prefix}.lora_B.weight"].double()
        @ factors[f"{prefix}.lora_A.weight"].double()
    )
    name = "mha.out_proj.weight"
    exact = tensors_of(made.base)[name].double() + 2 * delta
    assert torch.equal(nearest(exact, torch.float32), tensors_of(tmp_path / "out")[name])
    assert "peft-quirk" in [str(finding.code) for finding in result.findings]


def test_kept_ties_change_both_sides_as_peft_does(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """--tie keep: one tensor, with the delta of either side, and a warning."""
    made = golden_cases.make(BY_NAME["tied_embedding"], tmp_path_factory.getbasetemp())
    result = adaptool.merge(made.base, made.adapter, tmp_path / "out", tie="keep")
    _check_exact(peft_merged(made, tmp_path / "peft", torch.float64), tensors_of(tmp_path / "out"))
    assert "tied-weights" in [str(finding.code) for finding in result.findings]


def test_ties_can_be_an_error(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """--tie error: exit 4 where one side would change, nothing where none does."""
    made = golden_cases.make(BY_NAME["tied_head"], tmp_path_factory.getbasetemp())
    with pytest.raises(adaptool.AdaptoolError) as caught:
        adaptool.merge(made.base, made.adapter, tmp_path / "out", tie="error")
    assert (caught.value.exit_code, str(caught.value.code)) == (4, "tied-weights")
    other = golden_cases.make(BY_NAME["qwen2"], tmp_path_factory.getbasetemp())
    adaptool.merge(other.base, other.adapter, tmp_path / "out", tie="error")


def test_family_without_a_record_is_not_untied(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nobody has checked that it loads and means the same: exit 4, unless the tie is to be kept."""
    made = golden_cases.make(BY_NAME["tied_head"], tmp_path_factory.getbasetemp())
    base = tmp_path / "base"
    shutil.copytree(made.base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    with pytest.raises(adaptool.AdaptoolError) as caught:
        adaptool.merge(base, made.adapter, tmp_path / "out")
    assert (caught.value.exit_code, str(caught.value.code)) == (4, "tied-weights")
    adaptool.merge(base, made.adapter, tmp_path / "out", tie="keep")


@pytest.mark.parametrize(
    ("name", "architecture", "labels"),
    [
        ("scorer_of_three", "LlamaForSequenceClassification", 3),
        ("token_classes", "BertForTokenClassification", None),
        ("plain", "LlamaForCausalLM", None),
    ],
)
def test_new_classification_head_is_in_the_config(
    name: str,
    architecture: str,
    labels: int | None,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The architecture is the classifier's, and the labels are counted where they are not two."""
    made = golden_cases.make(BY_NAME[name], tmp_path_factory.getbasetemp())
    adaptool.merge(made.base, made.adapter, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config.get("num_labels")) == ([architecture], labels)


def test_headless_model_gets_no_head(tmp_path: Path) -> None:
    """A bare encoder has no head that its embedding could be tied to."""
    with quietly():
        model = build("bert").bert
        model.save_pretrained(tmp_path / "base")
        options = LoraConfig(r=4, lora_alpha=8, target_modules=["word_embeddings"])
        tuned = get_peft_model(model, options)
        golden_cases.train(tuned)
        tuned.save_pretrained(tmp_path / "adapter")
    result = adaptool.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert result.touched == 1
    assert set(tensors_of(tmp_path / "out")) == set(tensors_of(tmp_path / "base"))
    assert (tmp_path / "out" / "config.json").read_bytes() == (
        tmp_path / "base" / "config.json"
    ).read_bytes()
