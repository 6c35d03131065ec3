"""validate --target: what a runtime does with an artifact, beside what is wrong with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import pytest

from adaptool import api
from adaptool.cli.commands.validate import command
from adaptool.errors import UsageError
from adaptool.findings import Code, Finding, Severity
from adaptool.runtimes import runtimes
from small_pairs import (
    ALPHA,
    HIDDEN,
    LLAMA,
    PREFIX,
    RANK,
    VOCAB,
    config_of,
    drawn,
    llama_base,
    llama_factors,
    lora,
    save,
    save_adapter,
    save_base,
    write,
)


def adapter(folder: Path, more: Any = None, **config: Any) -> Path:
    """The plain adapter, with more tensors and another config."""
    save_adapter(folder, llama_factors() | (more or {}), config_of(**config))
    return folder


def judged(path: Path, target: str, base: Path | None = None) -> list[Finding]:
    """The findings that are about the runtime."""
    every = api.validate(path, target=target, base=base).findings
    return [finding for finding in every if finding.code.startswith(("target-", "tie-"))]


def codes(path: Path, target: str, base: Path | None = None) -> list[Code]:
    """Their codes."""
    return [finding.code for finding in judged(path, target, base)]


def test_scale_that_sglang_would_take_stands_beside_the_trained_one(tmp_path: Path) -> None:
    """alpha / r instead of alpha / sqrt(r), the number of modules, and the command."""
    (finding,) = judged(adapter(tmp_path / "a", use_rslora=True), "sglang")
    assert finding.severity is Severity.ERROR
    trained, there = ALPHA / math.sqrt(RANK), ALPHA / RANK
    assert f"mis-scaled by SGLang: 14 of 14 modules: {there:g} instead of {trained:g}" in (
        finding.message
    )
    assert finding.hint == "adaptool convert ADAPTER OUT --to peft --bake-scale"


def test_alpha_pattern_that_changes_nothing_is_no_problem(tmp_path: Path) -> None:
    """The scales decide, not the config's words."""
    path = adapter(tmp_path / "a", alpha_pattern={"q_proj": ALPHA})
    assert codes(path, "sglang") == []
    other = adapter(tmp_path / "b", alpha_pattern={"q_proj": ALPHA + 1})
    assert "2 of 14 modules" in judged(other, "sglang")[0].message


def test_vllm_scales_as_peft_does(tmp_path: Path) -> None:
    """rsLoRA and patterns are no problem there, a rank above the default is a flag."""
    pattern = {"use_rslora": True, "alpha_pattern": {"q_proj": 1}}
    assert codes(adapter(tmp_path / "a", **pattern), "vllm") == []
    more = lora("model.layers.0.self_attn.q_proj", HIDDEN, HIDDEN, seed=1, rank=20)
    path = adapter(tmp_path / "b", more, rank_pattern={"layers.0.self_attn.q_proj": 20})
    (finding,) = judged(path, "vllm")
    assert (finding.code, finding.severity) == (Code.TARGET_CONDITIONAL, Severity.WARNING)
    assert "--max-lora-rank 32" in finding.message


def test_base_decides_whether_llama_cpp_takes_lm_head(tmp_path: Path) -> None:
    """Unknown without a base, refused for a tied one, fine for one with a head of its own."""
    head = lora("lm_head", VOCAB, HIDDEN, seed=9)
    targets = [*config_of()["target_modules"], "lm_head"]
    path = adapter(tmp_path / "a", head, target_modules=targets)
    save_base(tmp_path / "apart", llama_base(), LLAMA, "bfloat16")
    tied = {name: value for name, value in llama_base().items() if name != "lm_head.weight"}
    save_base(tmp_path / "tied", tied, LLAMA | {"tie_word_embeddings": True}, "bfloat16")
    unread = Code.TARGET_REFUSED
    assert codes(path, "llamacpp") == [unread, Code.TARGET_CONDITIONAL]
    assert codes(path, "llamacpp", tmp_path / "apart") == [unread]
    found = judged(path, "llamacpp", tmp_path / "tied")
    assert [finding.code for finding in found] == [unread, Code.TARGET_REFUSED]
    assert "the base has none of its own" in found[1].message


def test_tokens_inside_the_vocabulary_are_not_added_ones(tmp_path: Path) -> None:
    """SGLang refuses tokens beyond the base's vocabulary, and no others."""
    path = adapter(tmp_path / "a")
    save_base(tmp_path / "base", llama_base(), LLAMA, "bfloat16")
    (path / "added_tokens.json").write_text(json.dumps({"<old>": VOCAB - 1}))
    assert codes(path, "sglang", tmp_path / "base") == []
    (path / "added_tokens.json").write_text(json.dumps({"<new>": VOCAB}))
    assert codes(path, "sglang", tmp_path / "base") == [Code.TARGET_REFUSED]


def test_broken_token_file_is_passed_over_as_sglang_does(tmp_path: Path) -> None:
    """It warns and goes on; the other rules are still asked."""
    path = adapter(tmp_path / "a", use_rslora=True)
    (path / "added_tokens.json").write_text("{")
    assert codes(path, "sglang") == [Code.TARGET_MIS_SCALED]


def test_adapter_that_cannot_be_read_is_judged_by_its_config(tmp_path: Path) -> None:
    """A tuner that does not fit its tensors is an error here, and refused there."""
    path = adapter(tmp_path / "a", peft_type="LOHA", use_dora=True)
    fields = {finding.field for finding in judged(path, "vllm")}
    assert fields == {"peft_type", "use_dora"}


def test_lora_ga_passes_vllms_check_and_means_something_else(tmp_path: Path) -> None:
    """Loaded onto the original base, the delta that was subtracted from it is missing."""
    (finding,) = judged(adapter(tmp_path / "a", init_lora_weights="lora_ga"), "vllm")
    assert finding.code is Code.TARGET_IGNORED
    (finding,) = judged(adapter(tmp_path / "b", init_lora_weights="pissa"), "vllm")
    assert finding.code is Code.TARGET_REFUSED
    assert codes(adapter(tmp_path / "c", init_lora_weights="gaussian"), "vllm") == []


def test_classifier_is_the_one_module_that_vllm_takes_whole(tmp_path: Path) -> None:
    """A sequence classifier's head loads, a language model's does not."""
    score = {f"{PREFIX}score.weight": drawn(1, 2, HIDDEN)}
    saved = {"modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"}
    assert codes(adapter(tmp_path / "a", score, **saved), "vllm") == []
    assert codes(adapter(tmp_path / "a" / "b", score, **saved), "sglang") == [Code.TARGET_IGNORED]


@pytest.mark.parametrize(
    ("target", "expected"),
    [("vllm", "refused by vLLM"), ("llamacpp", "ignored by llama.cpp"), ("mlx", None)],
)
def test_untied_gemma_is_named_for_the_runtimes_that_tie_it(
    target: str, expected: str | None, tmp_path: Path
) -> None:
    """A merged model has its own rule; that there is only one is said."""
    gemma = LLAMA | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}
    save_base(tmp_path / "merged", llama_base(), gemma, "bfloat16")
    found = judged(tmp_path / "merged", target)
    assert found[-1].code is Code.TARGET_UNCHECKED
    assert [finding.message.startswith(expected or "") for finding in found[:-1]] == (
        [True] if expected else []
    )
    assert all(finding.code is Code.TIE_RUNTIME for finding in found[:-1])


def test_tied_gemma_is_fine(tmp_path: Path) -> None:
    """Only the note that rules are about adapters."""
    gemma = LLAMA | {"model_type": "gemma2", "tie_word_embeddings": True}
    tied = {name: value for name, value in llama_base().items() if name != "lm_head.weight"}
    save_base(tmp_path / "model", tied, gemma, "bfloat16")
    assert codes(tmp_path / "model", "vllm") == [Code.TARGET_UNCHECKED]


@pytest.mark.parametrize(
    ("pair", "vllm", "sglang"),
    [
        ("lora", "", ""),
        ("dora-rows", "refused", "refused"),
        ("dora-columns", "refused", "refused ignored"),
        ("experts", "conditional", "refused"),
        ("modules-to-save", "refused", "ignored"),
        ("embedding", "conditional", ""),
        ("token-rows", "refused", "ignored"),
    ],
)
def test_every_kind_of_adapter_has_its_verdicts(
    pair: str, vllm: str, sglang: str, tmp_path: Path
) -> None:
    """With the base at hand, for the two runtimes that read PEFT's folders."""
    made = write(pair, tmp_path)
    for target, expected in (("vllm", vllm), ("sglang", sglang)):
        found = {finding.message.split()[0] for finding in judged(made.adapter, target, made.base)}
        assert found == set(expected.split()), target


def test_unknown_runtime_is_a_usage_error_that_names_the_near_one(tmp_path: Path) -> None:
    """Exit 2 before anything is opened."""
    with pytest.raises(UsageError) as caught:
        api.validate(tmp_path / "nothing here", target="vlm")
    assert caught.value.field == "--target"
    assert caught.value.hint == "did you mean vllm?"


def test_help_names_every_runtime() -> None:
    """What --target is shown to take is what is there."""
    (option,) = [each for each in command.params if each.name == "target"]
    assert isinstance(option, click.Option)
    assert str(option.metavar).split("|") == sorted(runtimes(), key=_in_the_contract)


def _in_the_contract(name: str) -> int:
    return ("vllm", "sglang", "llamacpp", "mlx", "diffusers", "comfyui").index(name)


@pytest.mark.parametrize(
    ("kind", "module", "fits"),
    [
        ("deepseek_v3", "model.layers.0.self_attn.kv_b_proj", False),
        ("deepseek_v2", "model.layers.0.self_attn.kv_b_proj", True),
        ("qwen2_vl", "model.layers.0.self_attn.kv_b_proj", False),
        ("qwen2_vl", "language_model.model.layers.0.self_attn.kv_b_proj", True),
        ("t5", "model.layers.0.self_attn.kv_b_proj", False),
    ],
)
def test_mlx_looks_for_the_modules_of_its_own_model(
    kind: str, module: str, *, fits: bool, tmp_path: Path
) -> None:
    """The base's type and tensors say which there are; MLX-LM raises on any other."""
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    save_base(
        tmp_path / "base",
        llama_base() | {name: drawn(3, HIDDEN, HIDDEN)},
        LLAMA | {"model_type": kind},
        "bfloat16",
    )
    folder = tmp_path / "mlx"
    folder.mkdir()
    factors = {
        f"{module}.lora_a": drawn(1, HIDDEN, RANK),
        f"{module}.lora_b": drawn(2, RANK, HIDDEN),
    }
    save(folder / "adapters.safetensors", factors, "float32")
    parameters = {"rank": RANK, "scale": 2.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    found = [each for each in codes(folder, "mlx", tmp_path / "base") if each.startswith("target")]
    assert (Code.TARGET_REFUSED in found) is not fits
