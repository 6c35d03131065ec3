"""Every family in the registry of ties: untied by a merge, it loads and means the same.

The truth is PEFT's adapted model, unmerged. PEFT's own merge changes both sides at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.models.auto import modeling_auto

import adaptool
from adaptool.names.families import TIES, TieRecord
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
LANGUAGE = {"gemma3": "gemma3_text", "paligemma": "gemma", "smolvlm": "llama", "internvl": "qwen2"}
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


def _record(kind: str) -> TieRecord:
    return TIES[LANGUAGE.get(kind, kind)]


def _sizes(kind: str) -> dict[str, Any]:
    if kind in SEEING:
        return {"tie_word_embeddings": True, **SEEING[kind]}
    sizes = ENCODER_DECODER if _record(kind).also or kind == "whisper" else SIZES
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
    record = _record(kind)
    if side == "head":
        name = "lm_head" if kind == "gpt_neox" else record.head.removesuffix(".weight")
    else:
        name = "embed_tokens" if record.also else record.embedding.removesuffix(".weight")
    return rf"(.*\.)?{re.escape(name)}"


@pytest.mark.parametrize("side", ["head", "embedding"])
@pytest.mark.parametrize("kind", sorted({*TIES, *SEEING}))
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
    assert _record(kind).head in tensors_of(out)
