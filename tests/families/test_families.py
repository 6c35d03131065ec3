"""Typical adapters of every family, against the names its checkpoint has on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel
from transformers.utils import logging

import adaptool
from adaptool.findings import Code
from adaptool.layouts import decode
from adaptool.model.options import MergeOptions
from adaptool.model.plan import Plan
from adaptool.ops.merge import Part, plan_merge
from adaptool.store.adapter_files import open_adapter
from adaptool.store.checkpoint import open_checkpoint
from diffusers_components import COMPONENTS
from family_models import FAMILIES, Family, build, config_of
from golden_cases import quietly, tensors_of, train
from make_families import FOLDER, fixture, rendered
from module_trees import linears, tree

logging.disable_progress_bar()
logging.set_verbosity_error()

# Where a value in the wrong place would not show in the names; the others by test-all.
COMPARED = (
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
    "gpt_oss",
    "llama4",
    "granitemoe",
    "mllama",
    "qwen2_vl",
    "whisper",
    "mamba",
)
# PEFT's "all-linear" on these raises: out_proj of a Mamba mixer is never called as a module, and
# Wav2Vec2 has no input embeddings to leave out.
ALL_LINEAR_REFUSED = {"mamba", "mamba2", "falcon_mamba", "wav2vec2"}
# The vision tower as transformers 4 saved it, and as most checkpoints still have it.
TOWER = ("vision_tower.", "vision_tower.vision_model.")
# Multimodal models and the class of their text model alone.
TEXT_ONLY = {
    "llava": "LlamaForCausalLM",
    "llava_next": "MistralForCausalLM",
    "llava_onevision": "Qwen2ForCausalLM",
    "qwen3_vl": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "paligemma": "GemmaForCausalLM",
    "mllama": "MllamaForCausalLM",
    "llama4": "Llama4ForCausalLM",
    "mistral3": "MistralForCausalLM",
    "idefics3": "LlamaForCausalLM",
    "internvl": "Qwen2ForCausalLM",
}
OLD_TOWERS = ("gemma3", "llava", "llava_next", "llava_onevision", "paligemma")


def _others_slow(names: Iterable[str]) -> list[Any]:
    """The families compared by every run; the others are marked slow."""
    return [
        name if name in COMPARED else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]


def _fixture(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def _shapes(name: str) -> dict[str, list[int]]:
    return {key: shape for key, (_, shape) in _fixture(name)["tensors"].items()}


def _base(folder: Path, shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> Path:
    folder.mkdir()
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The family's checkpoint as the fixture names it, all zeros."""
    name = request.node.callspec.params["name"]
    return _base(tmp_path / "base", _shapes(name), _fixture(name)["config"])


def _adapter(folder: Path, model: nn.Module, **options: Any) -> Path:
    with quietly():
        tuned = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, **options))
        train(tuned)
        tuned.save_pretrained(folder)
    return folder


def _typical(family: Family) -> dict[str, Any]:
    return {
        "target_modules": list(family.targets),
        "target_parameters": list(family.parameters) or None,
        "modules_to_save": list(family.save) or None,
    }


def _plan(base: Path, adapter: Path) -> tuple[Plan, set[str]]:
    """The plan, and the names of all the adapter's tensors."""
    with open_checkpoint(base) as opened, open_adapter(adapter) as files:
        plan = plan_merge(opened, [Part(files, decode(files), 1.0)], MergeOptions())
        return plan, set(files.tensors)


def _check_nothing_left(base: Path, adapter: Path) -> Plan:
    """Every tensor of the adapter is read by some row, under names that are known."""
    plan, names = _plan(base, adapter)
    used = {row.source.name for row in plan.rows}
    used |= {blend.value.name for row in plan.rows for blend in row.blends}
    used |= {
        ref.name for row in plan.rows for piece in row.pieces for ref in piece.delta.roles.values()
    }
    assert sorted(names - used) == []
    assert {finding.code for finding in plan.findings} & {
        Code.MATCHED_BY_SUFFIX,
        Code.MODULE_NOT_IN_BASE,
        Code.MODULE_SKIPPED,
        Code.TENSOR_DROPPED,
    } == set()
    return plan


@cache
def _rendered(name: str) -> str:
    with quietly():
        return rendered(fixture(name))


@pytest.mark.parametrize("name", [*FAMILIES, *COMPONENTS])
def test_fixture_is_what_the_library_saves(name: str) -> None:
    """The committed file is the generator's, byte for byte."""
    assert (FOLDER / f"{name}.json").read_text() == _rendered(name)


def test_every_fixture_has_its_family() -> None:
    """No file is left of a family that is gone."""
    assert {path.stem for path in FOLDER.glob("*.json")} == {*FAMILIES, *COMPONENTS}


@pytest.mark.parametrize("name", FAMILIES)
def test_typical_adapter_is_used_whole(name: str, base: Path, tmp_path: Path) -> None:
    """Usual modules, stacked experts by name, a saved head: PEFT under transformers 5."""
    family = FAMILIES[name]
    plan = _check_nothing_left(
        base, _adapter(tmp_path / "adapter", build(family), **_typical(family))
    )
    for parameter in family.parameters:
        pieces = {
            (row.name, piece.view.expert)
            for row in plan.rows
            for piece in row.pieces
            if piece.delta.parameter.endswith(parameter)
        }
        assert pieces


@pytest.mark.parametrize("name", _others_slow(sorted(set(FAMILIES) - ALL_LINEAR_REFUSED)))
def test_adapter_of_all_linear_layers_is_used_whole(name: str, base: Path, tmp_path: Path) -> None:
    """PEFT's all-linear, which names the experts' parameters by itself."""
    adapter = _adapter(tmp_path / "adapter", build(FAMILIES[name]), target_modules="all-linear")
    _check_nothing_left(base, adapter)


@pytest.mark.parametrize("name", sorted(ALL_LINEAR_REFUSED))
def test_all_linear_is_still_refused_by_peft(name: str, tmp_path: Path) -> None:
    """The list of exceptions is no longer than PEFT's own."""
    with pytest.raises((ValueError, NotImplementedError)):
        _adapter(tmp_path / "adapter", build(FAMILIES[name]), target_modules="all-linear")


@pytest.mark.parametrize("name", [*FAMILIES, *COMPONENTS])
def test_adapter_with_the_names_on_disk_is_used_whole(
    name: str, base: Path, tmp_path: Path
) -> None:
    """Under transformers 4 modules were named as on disk: each expert, each old prefix."""
    model = tree(_shapes(name), conv1d=name == "gpt2")
    targets = linears(model)
    assert targets
    adapter = _adapter(
        tmp_path / "adapter", model, target_modules=targets, fan_in_fan_out=name == "gpt2"
    )
    plan = _check_nothing_left(base, adapter)
    assert {row.name for row in plan.rows if row.pieces} == {f"{path}.weight" for path in targets}


@pytest.mark.parametrize("name", _others_slow(FAMILIES))
def test_adapter_of_the_headless_model_is_used_whole(name: str, base: Path, tmp_path: Path) -> None:
    """Trained as AutoModel, merged into the checkpoint of the model with its head."""
    with quietly():
        model = AutoModel.from_config(config_of(FAMILIES[name]))
    family = _typical(FAMILIES[name]) | {"modules_to_save": None}
    _check_nothing_left(base, _adapter(tmp_path / "adapter", model, **family))


@pytest.mark.parametrize("name", _others_slow(FAMILIES))
def test_adapter_fits_the_checkpoint_of_the_headless_model(name: str, tmp_path: Path) -> None:
    """Trained with the head, merged into what AutoModel saves."""
    family = FAMILIES[name]
    with quietly():
        headless = AutoModel.from_config(config_of(family))
        headless.save_pretrained(tmp_path / "base")
    options = _typical(family) | {"modules_to_save": None}
    _check_nothing_left(tmp_path / "base", _adapter(tmp_path / "adapter", build(family), **options))


@pytest.mark.parametrize("name", OLD_TOWERS)
def test_vision_tower_of_transformers_4_takes_adapters_of_both(name: str, tmp_path: Path) -> None:
    """`vision_tower.vision_model.` on disk, as the published checkpoints have it."""
    new, old = TOWER
    shapes = {key.replace(new, old): shape for key, shape in _shapes(name).items()}
    base = _base(tmp_path / "base", shapes, _fixture(name)["config"])
    five = _adapter(tmp_path / "five", build(FAMILIES[name]), target_modules="all-linear")
    _check_nothing_left(base, five)
    model = tree(shapes)
    _check_nothing_left(base, _adapter(tmp_path / "four", model, target_modules=linears(model)))
    recent = _base(tmp_path / "recent", _shapes(name), _fixture(name)["config"])
    _check_nothing_left(recent, tmp_path / "four")
    state = {key: value.shape for key, value in build(FAMILIES[name]).state_dict().items()}
    late = tree({key.replace(new, old): shape for key, shape in state.items()})
    _adapter(tmp_path / "late", late, target_modules=linears(late))  # transformers 4.52 to 4.57
    _check_nothing_left(base, tmp_path / "late")
    _check_nothing_left(recent, tmp_path / "late")


def _text_model(name: str) -> nn.Module:
    kind: Any = getattr(transformers, TEXT_ONLY[name])
    settings = {**config_of(FAMILIES[name]).get_text_config().to_dict(), "architectures": None}
    model: nn.Module = kind(kind.config_class(**settings))
    return model


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_adapter_of_the_text_model_fits_the_multimodal_one(
    name: str, base: Path, tmp_path: Path
) -> None:
    """Trained on the text alone, merged into the model that sees as well."""
    model = _text_model(name)
    _check_nothing_left(base, _adapter(tmp_path / "adapter", model, target_modules=["q_proj"]))


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_text_part_of_a_multimodal_adapter_fits_the_text_model(name: str, tmp_path: Path) -> None:
    """The other way round: what was trained of the text model has its place in it."""
    with quietly():
        _text_model(name).save_pretrained(tmp_path / "base")
    model = build(FAMILIES[name])
    targets = [path for path in linears(model) if "language_model" in path or "text_model" in path]
    _check_nothing_left(
        tmp_path / "base", _adapter(tmp_path / "adapter", model, target_modules=targets)
    )


@pytest.mark.parametrize("name", _others_slow(FAMILIES))
def test_adapter_with_old_names_fits_a_checkpoint_with_module_names(
    name: str, tmp_path: Path
) -> None:
    """A base written without transformers' saving code, as its modules are named now."""
    shapes = {key: list(value.shape) for key, value in build(FAMILIES[name]).state_dict().items()}
    base = _base(tmp_path / "base", shapes, _fixture(name)["config"])
    model = tree(_shapes(name), conv1d=name == "gpt2")
    _check_nothing_left(base, _adapter(tmp_path / "adapter", model, target_modules=linears(model)))


@pytest.mark.parametrize("name", ["granitemoe", "granitemoeshared"])
def test_stack_named_as_transformers_4_did_is_used_whole(
    name: str, base: Path, tmp_path: Path
) -> None:
    """Granite's experts were modules with one stacked weight."""
    stacks = [f"block_sparse_moe.{side}_linear.weight" for side in ("input", "output")]
    model = tree(_shapes(name))
    adapter = _adapter(tmp_path / "adapter", model, target_modules=[], target_parameters=stacks)
    plan = _check_nothing_left(base, adapter)
    touched = {row.name.partition("layers.0.")[2] for row in plan.rows if row.pieces}
    assert touched - {""} == set(stacks)


@pytest.mark.parametrize("name", _others_slow(FAMILIES))
def test_merge_is_pefts(name: str, tmp_path: Path) -> None:
    """The same tensors as PEFT's merge, saved by transformers, to float32 rounding."""
    family = FAMILIES[name]
    kind = getattr(transformers, family.kind)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    with quietly():
        build(family).save_pretrained(base)
        _adapter(adapter, kind.from_pretrained(base), **_typical(family))
        merged = PeftModel.from_pretrained(kind.from_pretrained(base), adapter).merge_and_unload()
        merged.save_pretrained(tmp_path / "peft")
    adaptool.merge(base, adapter, tmp_path / "out")
    ours, theirs, before = map(tensors_of, (tmp_path / "out", tmp_path / "peft", base))
    assert ours.keys() == theirs.keys()
    errors = {
        key: float((ours[key] - value).norm() / value.norm().clamp(min=1e-12))
        for key, value in theirs.items()
    }
    assert {key: error for key, error in errors.items() if not error <= 1e-6} == {}
    assert any(not torch.equal(ours[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", COMPONENTS)
def test_merge_of_a_component_is_pefts(name: str, tmp_path: Path) -> None:
    """Linear layers and convolutions of a denoiser, merged inside its pipeline."""
    component = COMPONENTS[name]
    folder = tmp_path / "pipeline" / component.folder
    model = tree(component.shapes)
    train(model)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    folder.mkdir()
    save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": component.kind}))
    adapter = _adapter(tmp_path / "adapter", model, target_modules=list(component.targets))
    again = tree(component.shapes)
    again.load_state_dict(tensors_of(folder))
    with quietly():
        expected = PeftModel.from_pretrained(again, adapter).merge_and_unload().state_dict()
    result = adaptool.merge(folder, adapter, tmp_path / "out")
    assert result.touched >= len(component.targets)
    ours = tensors_of(tmp_path / "out")
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=1e-6)
