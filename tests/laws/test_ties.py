"""Tied weights: a merged model answers as PEFT's adapted model, whatever shares a tensor.

The truth is PEFT's adapted model, unmerged. PEFT's own merge changes both sides at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers.models.auto import modeling_auto

import adaptool
import ties_from_transformers as generator
from adaptool.names import tied
from golden_cases import quietly, tensors_of, train

# Under whatever name a config has it.
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
ENCODER_DECODER = {
    **{key: SIZES[key] for key in ("vocab_size", "max_position_embeddings", "tie_word_embeddings")},
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# None: the family's config takes no such key.
OTHER_SIZES: Mapping[str, Mapping[str, Any]] = {
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "gpt_bigcode": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "bloom": {"n_head": 4, "n_layer": 2},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "albert": {"embedding_size": 32},
    "electra": {"embedding_size": 32},
    "distilbert": {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "falcon": {"head_dim": None},
    "minicpm3": {"num_key_value_heads": 4},
    "nllb-moe": {"num_experts": 3},
    "whisper": {"num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 64},
}
TEXT = {**SIZES, "tie_word_embeddings": True}
ROTARY = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
QWEN_TEXT = {**TEXT, "rope_parameters": ROTARY}
SIGHT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
QWEN_SIGHT = {
    "depth": 1,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
}
# Models that see: two configs in one. Those without a record of their own have their language
# model's.
SEEING: Mapping[str, Mapping[str, Any]] = {
    "qwen2_vl": {
        "text_config": QWEN_TEXT,
        "vision_config": {**QWEN_SIGHT, "embed_dim": 16, "hidden_size": 32},
    },
    "qwen2_5_vl": {"text_config": QWEN_TEXT, "vision_config": QWEN_SIGHT},
    "qwen3_vl": {
        "text_config": QWEN_TEXT,
        "vision_config": {
            **QWEN_SIGHT,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    },
    "gemma3": {"text_config": TEXT, "vision_config": SIGHT, "mm_tokens_per_image": 4},
    "paligemma": {
        "text_config": {**TEXT, "model_type": "gemma"},
        "vision_config": {**SIGHT, "model_type": "siglip_vision_model", "projection_dim": 32},
    },
    "smolvlm": {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": SIGHT},
    "internvl": {
        "text_config": {**TEXT, "model_type": "qwen2"},
        "vision_config": {**SIGHT, "image_size": [8, 8], "patch_size": [4, 4]},
    },
}
KINDS = sorted(
    {
        *("llama", "llama4_text", "mistral", "ministral", "mixtral", "qwen2", "qwen3", "phi"),
        *("phi3", "phimoe", "granite", "granitemoe", "granitemoeshared", "smollm3", "olmo"),
        *("olmo2", "olmo3", "olmoe", "starcoder2", "stablelm", "exaone4", "ernie4_5", "glm"),
        *("glm4", "gpt_oss", "helium", "hunyuan_v1_dense", "lfm2", "minicpm3", "nemotron"),
        *("persimmon", "seed_oss", "apertus", "arcee", "bitnet", "opt", "xglm", "falcon_h1"),
        *("diffllama", "gemma", "gemma2", "gemma3_text", "cohere", "cohere2", "gpt2"),
        *("gpt_bigcode", "mpt", "bloom", "falcon", "gpt_neox", "mamba", "mamba2"),
        *("falcon_mamba", "openai-gpt", "ctrl", "rwkv", "whisper", "mt5", "umt5", "longt5"),
        *("t5", "bart", "mbart", "pegasus", "m2m_100", "nllb-moe", "plbart", "blenderbot"),
        *("bert", "ernie", "megatron-bert", "roberta", "xlm-roberta", "camembert", "mpnet"),
        *("albert", "distilbert", "electra", "modernbert", "deberta", "deberta-v2", "convbert"),
        *("esm", "squeezebert", "biogpt", "marian", *SEEING),
    }
)
AUTO = (
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)


def _class(kind: str) -> Any:
    names = next(table[kind] for table in AUTO if kind in table)
    return getattr(transformers, names if isinstance(names, str) else names[0])


def _main_tie(kind: str) -> tuple[str, ...]:
    """The input embedding and what copies it in the class that is built here."""
    config = {"model_type": kind, "architectures": [_class(kind).__name__]}
    family = tied.family_of({**config, "tie_word_embeddings": True})
    assert family is not None
    return next(tie.names for tie in family.ties if "bias" not in tie.names[0])


def _sizes(kind: str) -> dict[str, Any]:
    if kind in SEEING:
        return {"tie_word_embeddings": True, **SEEING[kind]}
    sizes = ENCODER_DECODER if len(_main_tie(kind)) > 2 or kind == "whisper" else SIZES
    wanted = {**sizes, **OTHER_SIZES.get(kind, {})}
    return {key: value for key, value in wanted.items() if value is not None}


def _tiny(kind: str) -> nn.Module:
    config = transformers.AutoConfig.for_model(kind, **_sizes(kind))
    torch.manual_seed(0)
    model = _class(kind)(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model.eval()


def _answer(model: nn.Module) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 60, (1, 9), generator=draw)
    inputs = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens[:, :5]
    if model.config.model_type == "whisper":
        inputs["input_features"] = torch.randn(1, 8, 16, generator=draw)
        del inputs["input_ids"]
    with torch.inference_mode():
        return model(**inputs).logits


def _targets(kind: str, side: str) -> str:
    """An expression for the modules that PEFT is to adapt.

    Where the two stacks have embeddings of their own, the shared one is only where they start from.
    """
    embedding, *others = (name.removesuffix(".weight") for name in _main_tie(kind))
    heads = [name for name in others if "embed_tokens" not in name]
    names = heads if side == "head" else [name for name in others if name not in heads]
    return "|".join(re.escape(name) for name in names or [embedding])


FAST = ["bart", "bert", "gpt2", "llama", "t5"]


@pytest.mark.parametrize("side", ["head", "embedding"])
@pytest.mark.parametrize(
    "kind",
    [*FAST, *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind not in FAST)],
)
def test_untied_family_answers_as_the_adapted_model(kind: str, side: str, tmp_path: Path) -> None:
    """One side's delta moves that side only, and transformers loads both."""
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    with quietly():
        model = _tiny(kind)
        model.save_pretrained(base)
        options = LoraConfig(r=4, lora_alpha=8, target_modules=_targets(kind, side))
        tuned = get_peft_model(type(model).from_pretrained(base), options)
        train(tuned)
        tuned.save_pretrained(adapter, save_embedding_layers=False)
        adapted = PeftModel.from_pretrained(type(model).from_pretrained(base), adapter).eval()
        result = adaptool.merge(base, adapter, out)
        merged = type(model).from_pretrained(out).eval()
    truth, plain = _answer(adapted), _answer(model)
    assert float((truth - plain).norm() / truth.norm()) > 1e-2
    torch.testing.assert_close(_answer(merged), truth, rtol=1e-5, atol=2e-5)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert "tied-weights" in [str(finding.code) for finding in result.findings]


# --- what the file holds, whatever its config says ------------------------------------------------


@dataclass(frozen=True)
class State:
    """A base whose config says that it is tied or not, with the copies that its file holds."""

    kind: str
    flag: bool
    file: str

    def make(self, out: Path) -> None:
        """`file`: only the first name ("one"), all names with its values, or with others."""
        with quietly():
            model = _tiny(self.kind)
            model.save_pretrained(out)
        first, *others = _main_tie(self.kind)
        tensors = tensors_of(out)
        for place, name in enumerate(others) if self.file != "one" else ():
            torch.manual_seed(place)
            noise = 0.3 * torch.randn_like(tensors[first]) if self.file == "different" else 0
            tensors[name] = (tensors[first] + noise).clone()
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": self.flag}))


STATES = [
    State(kind, flag, file)
    for kind in ("llama", "t5", "bert", "gpt2")
    for flag, file in (
        (True, "one"),
        (True, "equal"),
        (True, "different"),
        (False, "equal"),
        (False, "different"),
    )
]
INNER = {"llama": "q_proj", "t5": "q", "bert": "query", "gpt2": "c_attn"}


def _adapters(kind: str) -> Mapping[str, Mapping[str, Any]]:
    """PEFT's options by what of the tied names is trained."""
    embedding, *others = (name.removesuffix(".weight") for name in _main_tie(kind))
    head, inner = others[-1], INNER[kind]
    return {
        "nothing": {"target_modules": [inner]},
        "embedding": {"target_modules": [inner, embedding]},
        "head": {"target_modules": [inner, head]},
        "both": {"target_modules": [inner, embedding, head]},
        "saved embedding": {"target_modules": [inner], "modules_to_save": [embedding]},
        "saved head": {"target_modules": [inner], "modules_to_save": [head]},
        "rows": {"target_modules": [inner], "trainable_token_indices": {embedding: [5, 7, 30]}},
        "asked to tie": {"target_modules": [inner, embedding], "ensure_weight_tying": True},
        "saved, asked to tie": {
            "target_modules": [inner],
            "modules_to_save": [embedding],
            "ensure_weight_tying": True,
        },
    }


def _named(state: State) -> str:
    return f"{state.kind}-{state.flag}-{state.file}"


@pytest.mark.parametrize("state", STATES[:5], ids=_named)
def test_every_state_answers_as_the_adapted_model(state: State, tmp_path: Path) -> None:
    """Every kind of change on every state of a family, at --tie untie, keep and error."""
    _check_state(state, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES[5:], ids=_named)
def test_every_state_of_other_families_answers_so(state: State, tmp_path: Path) -> None:
    """The same for more names, other names, biases, and weights that are stored turned."""
    _check_state(state, tmp_path)


def _check_state(state: State, folder: Path) -> None:
    base = folder / "base"
    state.make(base)
    for what, options in _adapters(state.kind).items():
        adapter = folder / what.replace(" ", "_")
        with quietly():
            kind = _class(state.kind)
            fan = state.kind == "gpt2"
            config = LoraConfig(r=3, lora_alpha=6, fan_in_fan_out=fan, **options)
            tuned = get_peft_model(kind.from_pretrained(base), config)
            train(tuned)
            tuned.save_pretrained(adapter)
            adapted = PeftModel.from_pretrained(kind.from_pretrained(base), adapter).eval()
            truth = _answer(adapted)
            for tie in ("untie", "keep", "error"):
                merged = _merged(base, adapter, folder / "out", tie)
                if merged:
                    answer = _answer(kind.from_pretrained(folder / "out").eval())
                    torch.testing.assert_close(answer, truth, rtol=1e-5, atol=3e-5)
            _check_no_merge(base, adapter, folder / "out")


def _merged(base: Path, adapter: Path, out: Path, tie: str) -> bool:
    """Whether it was merged as trained: --tie error and keep may refuse, and keep change both."""
    try:
        result = adaptool.merge(base, adapter, out, tie=tie, overwrite=True)
    except adaptool.MismatchError as error:
        assert (tie != "untie", str(error.code)) == (True, "tied-weights")  # noqa: PT017
        return False
    return not any("both sides" in finding.message for finding in result.findings)


def _check_no_merge(base: Path, adapter: Path, out: Path) -> None:
    """At weight 0 every tensor of the file is what it was."""
    adaptool.merge(base, adapter, out, weight=0, overwrite=True)
    before, after = tensors_of(base), tensors_of(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- the table ------------------------------------------------------------------------------------


def test_the_table_is_of_the_installed_transformers() -> None:
    """The fast part of the law below: some types of every kind, built anew."""
    written = json.loads(generator.TABLE.read_text())
    assert written["transformers"] == transformers.__version__
    for kind in ("llama", "t5", "bert", "llava", "d_fine"):
        made = json.loads(json.dumps(generator.table([kind])))
        assert written["types"][kind] == made["types"][kind]
        for name, body in made["classes"].items():
            assert written["classes"][name] == body


@pytest.mark.slow
def test_the_table_is_what_the_generator_writes() -> None:
    """ties.json is generated from the installed transformers and not edited."""
    with quietly():
        assert generator.TABLE.read_text() == generator.rendered(generator.table())
