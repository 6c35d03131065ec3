"""What PEFT can train and no weight can hold: one line says why, exit 4, nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    ArrowConfig,
    LoraConfig,
    PeftType,
    XLoraConfig,
    create_arrow_model,
    get_peft_model,
)

from golden_cases import load, quietly, save_base
from in_process import ask, done, refused
from tiny_models import build

Q = {"target_modules": ["q_proj"]}
TASK = {"task_type": "CAUSAL_LM"}
PROMPT = {"num_virtual_tokens": 3, **TASK}
WHOLE_METHODS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "PROMPT_TUNING": (PROMPT, "it learns a prompt, not weights"),
    "MULTITASK_PROMPT_TUNING": ({**PROMPT, "num_tasks": 2}, "it learns a prompt, not weights"),
    "P_TUNING": ({**PROMPT, "encoder_hidden_size": 8}, "it learns a prompt, not weights"),
    "PREFIX_TUNING": (PROMPT, "it learns a prefix of keys and values, not weights"),
    "CPT": (
        {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2], **TASK},
        "it learns a prompt, not weights",
    ),
    "CARTRIDGE": (PROMPT, "it learns a cache of keys and values, not weights"),
    "ADAPTION_PROMPT": (
        {"adapter_len": 3, "adapter_layers": 1, **TASK},
        "it adds gated attention, which no weight can hold",
    ),
    "POLY": ({"r": 4, "n_tasks": 2, "n_skills": 2, **Q}, "its weights depend on the task id"),
    "LILY": (Q, "its update depends on the input"),
    "SHADOW": (TASK, "its update depends on the input"),
    "ADAMSS": ({"r": 8, "num_subspaces": 2, **Q}, "which rows it changes is not in its file"),
}
LACKING: Mapping[str, tuple[str, Mapping[str, Any], str, str]] = {
    "aLoRA": (
        "LORA",
        {"r": 4, "alora_invocation_tokens": [1, 2], **Q, **TASK},
        "alora_invocation_tokens",
        "acts on some tokens only",
    ),
    "QALoRA": ("LORA", {"r": 4, "use_qalora": True, **Q}, "use_qalora", "GPTQ base"),
    "Uni-LoRA without indices": ("UNILORA", Q, "save_indices", "which numbers each layer takes"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama without biases."""
    where = tmp_path_factory.mktemp("not-mergeable") / "base"
    with quietly():
        save_base(build("llama"), where)
    return where


@pytest.fixture
def trained(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Saves an adapter of a PEFT type with these options; its folder."""

    def make(kind: str, options: Mapping[str, Any], name: str = "adapter") -> Path:
        with quietly():
            config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](**options)
            get_peft_model(load("llama", base), config).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def check_refused(base: Path, adapter: Path, reason: str, field: str | None = None) -> None:
    """One line with the reason, exit 4, and nothing beside the adapter that was not there."""
    out = adapter.parent / "out"
    before = set(adapter.parent.iterdir())
    error = refused(4, "merge", base, adapter, out)
    assert reason in str(error["message"])
    assert error.get("field") == field
    spoken = ask("merge", base, adapter, out)
    assert [line for line in spoken.err.splitlines() if not line.startswith("hint: ")] == [
        line for line in spoken.err.splitlines() if line.startswith("error: ")
    ]
    assert spoken.err.count("error: ") == 1
    assert set(adapter.parent.iterdir()) == before


@pytest.mark.parametrize("kind", WHOLE_METHODS)
def test_method_without_weights_says_why(
    kind: str, base: Path, trained: Callable[..., Path]
) -> None:
    """Whatever keys its file has, the config's type is what is talked about."""
    options, reason = WHOLE_METHODS[kind]
    adapter = trained(kind, options)
    check_refused(base, adapter, f"{kind} cannot be merged: {reason}", "peft_type")


@pytest.mark.parametrize("name", LACKING)
def test_switch_that_no_weight_can_hold_is_named(
    name: str, base: Path, trained: Callable[..., Path]
) -> None:
    """The config's field is named, not the tuner."""
    kind, options, field, reason = LACKING[name]
    check_refused(base, trained(kind, options), reason, field)


def test_beft_without_a_bias_is_refused(base: Path, trained: Callable[..., Path]) -> None:
    """A layer without a bias has nothing that could hold one."""
    adapter = trained("BEFT", {"target_modules": ["layers.0.self_attn.v_proj"]})
    check_refused(base, adapter, "bias")


def test_xlora_is_refused_and_what_it_mixes_can_be_merged(
    base: Path, trained: Callable[..., Path], tmp_path: Path
) -> None:
    """The classifier cannot be merged, what it mixes can; the copies it saved lack layers."""
    lora = {"r": 4, "init_lora_weights": False, **Q}
    mixed = {f"adapter_{place}": trained("LORA", lora, f"lora{place}") for place in range(2)}
    with quietly():
        model = load("llama", base)
        model.config.use_cache = False
        adapters = {name: str(where) for name, where in mixed.items()}
        config = XLoraConfig(hidden_size=32, adapters=adapters, **TASK)
        get_peft_model(model, config).save_pretrained(tmp_path / "xlora")
    check_refused(base, tmp_path / "xlora", "a classifier mixes adapters per token", "peft_type")
    check_refused(base, tmp_path / "xlora" / "0", "without every layer")
    done("merge", base, mixed["adapter_1"], tmp_path / "merged")


def test_arrow_router_is_refused_and_its_tasks_can_be_merged(
    base: Path, trained: Callable[..., Path], tmp_path: Path
) -> None:
    """The router chooses per token; each of the adapters it chooses from is a LoRA."""
    lora = {"r": 4, "init_lora_weights": False, **Q}
    tasks = [str(trained("LORA", lora, f"lora{place}")) for place in range(2)]
    with quietly():
        model = create_arrow_model(load("llama", base), tasks, ArrowConfig(top_k=1))
        model.save_pretrained(tmp_path / "arrow")
    router = tmp_path / "arrow" / "arrow_router"
    check_refused(base, router, "Arrow routes tokens between adapters", "arrow_config")
    done("merge", base, tmp_path / "arrow" / "task_1", tmp_path / "merged")


def test_kasa_without_its_singular_values_is_incomplete(
    base: Path, trained: Callable[..., Path]
) -> None:
    """A LoRA's file under KaSA's config is not taken for a plain LoRA."""
    adapter = trained("LORA", {"r": 4, **Q})
    config = adapter / "adapter_config.json"
    changed = config.read_text().replace('"kasa_config": null', '"kasa_config": {"beta": 1e-4}')
    config.write_text(changed)
    assert LoraConfig.from_pretrained(adapter).kasa_config is not None
    error = refused(3, "merge", base, adapter, adapter.parent / "out")
    assert "lora_diag" in str(error["message"])
