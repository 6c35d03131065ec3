"""Adapters as PEFT saves them by default: each merges, and the merged model answers as PEFT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import save_file

import adaptool
from adaptool.findings import Code
from golden_cases import Q_V as ATTENTION
from golden_cases import Case, load, make, quietly, tensors_of
from tiny_models import answer


def _case(name: str, model: str, targets: Any, **more: Any) -> Case:
    fields = {key: more.pop(key) for key in list(more) if key in Case.__dataclass_fields__}
    return Case(name, model, {"r": 3, "lora_alpha": 6, "target_modules": targets, **more}, **fields)


ROWS = [5, 66, 69]
MERGED = (
    _case("excluded_target", "llama", [*ATTENTION, "o_proj"], exclude_modules=["o_proj"]),
    _case("target_saved_too", "llama", ["q_proj", "lm_head"], modules_to_save=["lm_head"]),
    _case("target_of_no_family", "llama", ["q_proj", "c_attn", "query_key_value"]),
    _case("target_in_one_layer", "llama", ATTENTION, layers_to_transform=[1]),
    _case("resized_bert", "bert", ["query"], vocabulary=70),
    _case("resized_rows", "llama", ATTENTION, vocabulary=70, trainable_token_indices=ROWS),
    _case("resized_tied_rows", "qwen2", ATTENTION, vocabulary=70, trainable_token_indices=ROWS),
    _case("pissa_embedding", "llama", ["q_proj", "embed_tokens"], init_lora_weights="pissa"),
    _case("olora_embedding", "llama", ["q_proj", "embed_tokens"], init_lora_weights="olora"),
)


@pytest.mark.parametrize("case", MERGED, ids=lambda case: case.name)
def test_merged_model_answers_as_the_adapted_one(case: Case, tmp_path: Path) -> None:
    """Targets that select nothing, vocabularies that grew, initialisations beside embeddings."""
    made = make(case, tmp_path)
    adaptool.merge(made.base, made.adapter, tmp_path / "out")
    with quietly():
        found = answer(load(case.model, tmp_path / "out").eval(), case.model)
    torch.testing.assert_close(found, made.truth, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_initial_product_of_a_tied_head_needs_the_initial_adapter(
    init: str, tmp_path: Path
) -> None:
    """PEFT takes it out of the one tensor, so that the embedding has lost it too."""
    made = make(_case(f"tied_{init}", "qwen2", ["lm_head"], init_lora_weights=init), tmp_path)
    with pytest.raises(adaptool.MismatchError) as refused:
        adaptool.merge(made.base, made.adapter, tmp_path / "out")
    assert refused.value.code is Code.TIED_WEIGHTS


def test_a_target_without_tensors_that_the_base_has_is_missing(tmp_path: Path) -> None:
    """The file of an adapter of q and v, whose config names k as well: it was cut."""
    made = make(_case("missing_target", "llama", ATTENTION), tmp_path)
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    config["target_modules"] = [*ATTENTION, "k_proj"]
    (made.adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(adaptool.MismatchError) as refused:
        adaptool.merge(made.base, made.adapter, tmp_path / "out")
    assert refused.value.code is Code.TARGETS_ABSENT
    assert "k_proj" in refused.value.message


@pytest.mark.parametrize(
    "field", [{"target_modules": ["q_proj"]}, {"exclude_modules": ["v_proj"]}], ids=str
)
def test_tensors_that_the_config_does_not_select_are_refused(
    field: dict[str, Any], tmp_path: Path
) -> None:
    """PEFT leaves them out without an error; --allow-drop does so here."""
    made = make(_case("unselected", "llama", ATTENTION), tmp_path)
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    (made.adapter / "adapter_config.json").write_text(json.dumps({**config, **field}))
    with pytest.raises(adaptool.InputError) as refused:
        adaptool.merge(made.base, made.adapter, tmp_path / "out")
    assert refused.value.code is Code.TARGETS_FEWER_THAN_TENSORS
    adaptool.merge(made.base, made.adapter, tmp_path / "out", allow_drop=["*v_proj*"])
    before, after = map(tensors_of, (made.base, tmp_path / "out"))
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj"}


def test_loftq_is_merged_onto_the_weights_that_it_was_trained_on(tmp_path: Path) -> None:
    """nf4(W) + s B A of one iteration, W being that of the adapter's own modules alone."""
    made = make(_case("loftq", "llama", ATTENTION), tmp_path)
    tensors = tensors_of(made.base)
    seen = {name: _nf4(value) if _is_trained(name) else value for name, value in tensors.items()}
    (tmp_path / "seen").mkdir()
    save_file(seen, tmp_path / "seen" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "seen" / "config.json").write_bytes((made.base / "config.json").read_bytes())
    adaptool.merge(tmp_path / "seen", made.adapter, tmp_path / "expected")
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    loftq = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    (made.adapter / "adapter_config.json").write_text(json.dumps({**config, **loftq}))
    adaptool.merge(made.base, made.adapter, tmp_path / "out", qlora_base="dequantized")
    ours, wanted = (tensors_of(tmp_path / name) for name in ("out", "expected"))
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6, msg=name)


def _is_trained(name: str) -> bool:
    return any(f".{target}." in name for target in ATTENTION)


def _nf4(weight: torch.Tensor) -> torch.Tensor:
    """As PEFT's `loftq_init` has bitsandbytes round: without a second quantization of scales."""
    codes, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    return functional.dequantize_4bit(codes, state).reshape(weight.shape)


@pytest.mark.parametrize(
    ("loftq", "more"),
    [
        ({"loftq_bits": 4, "loftq_iter": 1}, {}),
        ({"loftq_bits": 4, "loftq_iter": 1}, {"init_adapter": "adapter"}),
        ({"loftq_bits": 4, "loftq_iter": 5}, {"qlora_base": "dequantized"}),
        ({"loftq_bits": 8, "loftq_iter": 1}, {"qlora_base": "dequantized"}),
    ],
    ids=str,
)
def test_loftq_is_no_subtraction(
    loftq: dict[str, int], more: dict[str, str], tmp_path: Path
) -> None:
    """Neither the initial adapter nor W alone gives what was trained on."""
    made = make(_case("loftq", "llama", ATTENTION), tmp_path)
    config = json.loads((made.adapter / "adapter_config.json").read_text())
    config |= {"init_lora_weights": "loftq", "loftq_config": loftq}
    (made.adapter / "adapter_config.json").write_text(json.dumps(config))
    options: dict[str, Any] = dict(more)
    if "init_adapter" in options:
        options["init_adapter"] = made.adapter
    with pytest.raises(adaptool.MismatchError) as refused:
        adaptool.merge(made.base, made.adapter, tmp_path / "out", **options)
    assert refused.value.code is Code.INIT_CHANGED_BASE
