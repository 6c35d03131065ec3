"""Tiny models of the families that adapters are made for, one row each.

A row names the transformers class, the settings that make its config small, and the modules and
parameters that adapters of this family usually train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

VOCAB = 64
Settings = Mapping[str, Any]

_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_PLAIN = {"vocab_size": VOCAB, "num_hidden_layers": 2, **_TOKENS}
DECODER: Settings = {
    **_PLAIN,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_MOE = {**DECODER, "num_experts_per_tok": 2}
_NARROW = {"moe_intermediate_size": 24}
_ENCODER = {
    **_PLAIN,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
_SEQ2SEQ = {
    **_TOKENS,
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_MLA = {
    **_MOE,
    **_NARROW,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_CLIP = {"model_type": "clip_vision_model", **_TOWER, "projection_dim": 16}
_SIGLIP = {"model_type": "siglip_vision_model", **_TOWER, "vision_use_head": False}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_QWEN_TEXT = {**DECODER, "rope_parameters": _MROPE}
_QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
}
_Q3_VISION = {**_QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
_SPECIAL = {
    "image_token_id": 60,
    "video_token_id": 61,
    "vision_start_token_id": 62,
    "vision_end_token_id": 63,
}
_MAMBA = {
    **_PLAIN,
    "hidden_size": 32,
    "state_size": 8,
    "time_step_rank": 4,
    "expand": 2,
    "use_mambapy": False,
}

Q_V = ("q_proj", "v_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
STACK = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


@dataclass(frozen=True, slots=True)
class Family:
    """`kind` is the class in transformers, `config` the config's, `targets` what is trained.

    `parameters` are the stacked parameters that PEFT's `target_parameters` would name.
    """

    kind: str
    config: str
    settings: Settings
    targets: tuple[str, ...] = Q_V
    parameters: tuple[str, ...] = ()
    save: tuple[str, ...] = field(default=())


MOE: Mapping[str, Family] = {
    "mixtral": Family(
        "MixtralForCausalLM", "MixtralConfig", {**_MOE, "num_local_experts": 4}, ATTENTION, STACK
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {**_MOE, **_NARROW, "num_experts": 4, "shared_expert_intermediate_size": 40},
        ATTENTION,
        STACK,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_MOE, **_NARROW, "num_experts": 4},
        ATTENTION,
        STACK,
    ),
    "qwen3_next": Family(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            **_MOE,
            **_NARROW,
            "num_experts": 4,
            "shared_expert_intermediate_size": 40,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        (*ATTENTION, "in_proj_qkvz", "in_proj_ba", "out_proj"),
        STACK,
    ),
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM", "DeepseekV2Config", _MLA, ("q_b_proj", "kv_b_proj"), STACK
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        _MLA,
        ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        STACK,
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        "GptOssConfig",
        {**_MOE, "num_local_experts": 4, "sliding_window": 16},
        ATTENTION,
        STACK,
    ),
    "llama4_text": Family(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {
            **_MOE,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 40,
            "interleave_moe_layer_step": 1,
            "attention_chunk_size": 32,
        },
        ATTENTION,
        ("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
    ),
    "granitemoe": Family(
        "GraniteMoeForCausalLM",
        "GraniteMoeConfig",
        {**_MOE, "num_local_experts": 4},
        ATTENTION,
        ("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
    ),
    "granitemoeshared": Family(
        "GraniteMoeSharedForCausalLM",
        "GraniteMoeSharedConfig",
        {**_MOE, "num_local_experts": 4, "shared_intermediate_size": 40},
        ATTENTION,
        ("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
    ),
    "olmoe": Family(
        "OlmoeForCausalLM", "OlmoeConfig", {**_MOE, "num_experts": 4}, ATTENTION, STACK
    ),
    "phimoe": Family(
        "PhimoeForCausalLM", "PhimoeConfig", {**_MOE, "num_local_experts": 4}, ATTENTION, STACK
    ),
    "glm4_moe": Family(
        "Glm4MoeForCausalLM",
        "Glm4MoeConfig",
        {
            **_MOE,
            **_NARROW,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
        ATTENTION,
        STACK,
    ),
    "ernie4_5_moe": Family(
        "Ernie4_5_MoeForCausalLM",
        "Ernie4_5_MoeConfig",
        {**_MOE, **_NARROW, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
        ATTENTION,
        STACK,
    ),
}
VISION: Mapping[str, Family] = {
    "llava": Family(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {"vision_config": _CLIP, "text_config": {"model_type": "llama", **DECODER}},
        (*ATTENTION, "linear_1"),
    ),
    "llava_next": Family(
        "LlavaNextForConditionalGeneration",
        "LlavaNextConfig",
        {"vision_config": _CLIP, "text_config": {"model_type": "mistral", **DECODER}},
        ATTENTION,
    ),
    "llava_onevision": Family(
        "LlavaOnevisionForConditionalGeneration",
        "LlavaOnevisionConfig",
        {"vision_config": _SIGLIP, "text_config": {"model_type": "qwen2", **DECODER}},
        ATTENTION,
    ),
    "qwen2_vl": Family(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "vision_config": {
                "depth": 2,
                "embed_dim": 16,
                "hidden_size": 32,
                "num_heads": 2,
                "patch_size": 4,
            },
            "text_config": _QWEN_TEXT,
            **_SPECIAL,
        },
        (*ATTENTION, "attn.qkv", "attn.proj"),
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {"vision_config": _QWEN_VISION, "text_config": _QWEN_TEXT, **_SPECIAL},
        (*ATTENTION, "attn.qkv", "attn.proj"),
    ),
    "qwen3_vl": Family(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        {"vision_config": _Q3_VISION, "text_config": _QWEN_TEXT, **_SPECIAL},
        (*ATTENTION, "attn.qkv"),
    ),
    "qwen3_vl_moe": Family(
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3VLMoeConfig",
        {
            "vision_config": _Q3_VISION,
            "text_config": {**_MOE, **_NARROW, "num_experts": 4, "rope_parameters": _MROPE},
            **_SPECIAL,
        },
        ATTENTION,
        STACK,
    ),
    "gemma3": Family(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {"vision_config": _SIGLIP, "text_config": DECODER, "mm_tokens_per_image": 4},
        ATTENTION,
    ),
    "paligemma": Family(
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        {
            "vision_config": {**_SIGLIP, "projection_dim": 32},
            "text_config": {"model_type": "gemma", **DECODER},
            "projection_dim": 32,
        },
        ATTENTION,
    ),
    "mllama": Family(
        "MllamaForConditionalGeneration",
        "MllamaConfig",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
                "intermediate_layers_indices": [0, 1],
                "vision_output_dim": 48,
            },
            "text_config": {**DECODER, "cross_attention_layers": [1]},
        },
        ATTENTION,
    ),
    "llama4": Family(
        "Llama4ForConditionalGeneration",
        "Llama4Config",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
            },
            "text_config": MOE["llama4_text"].settings,
        },
        ATTENTION,
        MOE["llama4_text"].parameters,
    ),
    "mistral3": Family(
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        {
            "vision_config": {"model_type": "pixtral", **_TOWER, "head_dim": 8},
            "text_config": {"model_type": "mistral", **DECODER},
        },
        ATTENTION,
    ),
    "idefics3": Family(
        "Idefics3ForConditionalGeneration",
        "Idefics3Config",
        {
            "vision_config": _TOWER,
            "text_config": {"model_type": "llama", **DECODER},
            "scale_factor": 2,
        },
        ATTENTION,
    ),
    "internvl": Family(
        "InternVLForConditionalGeneration",
        "InternVLConfig",
        {
            "vision_config": {**_TOWER, "image_size": [8, 8], "patch_size": [4, 4]},
            "text_config": {"model_type": "qwen2", **DECODER},
        },
        ATTENTION,
    ),
}
ENCODER_DECODER: Mapping[str, Family] = {
    "t5": Family("T5ForConditionalGeneration", "T5Config", _T5, ("q", "k", "v", "o", "wi", "wo")),
    "flan_t5": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        ("q", "v", "wi_0", "wi_1"),
    ),
    "umt5": Family("UMT5ForConditionalGeneration", "UMT5Config", _T5, ("q", "v")),
    "bart": Family("BartForConditionalGeneration", "BartConfig", _SEQ2SEQ, (*Q_V, "fc1")),
    "mbart": Family("MBartForConditionalGeneration", "MBartConfig", _SEQ2SEQ, Q_V),
    "marian": Family("MarianMTModel", "MarianConfig", _SEQ2SEQ, Q_V),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **_SEQ2SEQ,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        (*Q_V, "fc1"),
    ),
}
ENCODERS: Mapping[str, Family] = {
    "bert": Family(
        "BertForSequenceClassification",
        "BertConfig",
        _ENCODER,
        ("query", "value", "dense"),
        save=("classifier",),
    ),
    "roberta": Family(
        "RobertaForTokenClassification",
        "RobertaConfig",
        _ENCODER,
        ("query", "value"),
        save=("classifier",),
    ),
    "deberta_v2": Family(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        {**_ENCODER, "pos_att_type": ["p2c", "c2p"], "relative_attention": True},
        ("query_proj", "value_proj"),
        save=("classifier", "pooler"),
    ),
    "distilbert": Family(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {**_PLAIN, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
        ("q_lin", "v_lin"),
        save=("classifier", "pre_classifier"),
    ),
    "modernbert": Family(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        {**_ENCODER, "cls_token_id": 1, "sep_token_id": 2},
        ("Wqkv", "Wo", "Wi"),
        save=("classifier",),
    ),
    "electra": Family(
        "ElectraForSequenceClassification",
        "ElectraConfig",
        {**_ENCODER, "embedding_size": 16},
        ("query", "value"),
        save=("classifier",),
    ),
    "vit": Family(
        "ViTForImageClassification",
        "ViTConfig",
        {**_TOWER, "num_labels": 5},
        ("q_proj", "v_proj"),
        save=("classifier",),
    ),
    "dinov2": Family(
        "Dinov2ForImageClassification",
        "Dinov2Config",
        {**_TOWER, "num_labels": 5},
        ("q_proj", "v_proj", "fc1"),
        save=("classifier",),
    ),
    "clip": Family(
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**_ENCODER, "projection_dim": 16},
            "vision_config": _CLIP,
            "projection_dim": 16,
        },
    ),
    "clip_text": Family("CLIPTextModel", "CLIPTextConfig", {**_ENCODER, "projection_dim": 16}),
    "siglip": Family(
        "SiglipModel", "SiglipConfig", {"text_config": _ENCODER, "vision_config": _TOWER}
    ),
    "wav2vec2": Family(
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {
            **_PLAIN,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "conv_dim": [16, 16],
            "conv_stride": [2, 2],
            "conv_kernel": [3, 3],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        save=("lm_head",),
    ),
}
STATE_SPACE: Mapping[str, Family] = {
    "mamba": Family("MambaForCausalLM", "MambaConfig", _MAMBA, ("in_proj", "x_proj", "dt_proj")),
    "mamba2": Family(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            **_PLAIN,
            "hidden_size": 32,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
        },
        ("in_proj",),
    ),
    "falcon_mamba": Family(
        "FalconMambaForCausalLM", "FalconMambaConfig", _MAMBA, ("in_proj", "x_proj")
    ),
    "jamba": Family(
        "JambaForCausalLM",
        "JambaConfig",
        {
            **_MOE,
            "num_experts": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        (*ATTENTION, "in_proj", "x_proj"),
        ("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
    ),
}
DECODERS: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", "LlamaConfig", DECODER, ATTENTION),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", DECODER, ATTENTION),
    "gemma2": Family("Gemma2ForCausalLM", "Gemma2Config", DECODER, ATTENTION),
    "phi3": Family("Phi3ForCausalLM", "Phi3Config", DECODER, ("qkv_proj", "gate_up_proj")),
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            **_TOKENS,
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 64,
        },
        ("c_attn", "c_proj", "c_fc"),
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**_ENCODER, "tie_word_embeddings": False},
        ("query_key_value", "dense"),
    ),
    "falcon": Family(
        "FalconForCausalLM",
        "FalconConfig",
        {**_PLAIN, "hidden_size": 32, "num_attention_heads": 4, "num_kv_heads": 2},
        ("query_key_value", "dense"),
    ),
    "bloom": Family(
        "BloomForCausalLM",
        "BloomConfig",
        {**_TOKENS, "vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        ("query_key_value", "dense"),
    ),
}
FAMILIES: Mapping[str, Family] = {
    **MOE,
    **VISION,
    **ENCODER_DECODER,
    **ENCODERS,
    **STATE_SPACE,
    **DECODERS,
}


def config_of(family: Family) -> Any:
    """The family's small config."""
    return getattr(transformers, family.config)(**family.settings)


def build(family: Family, seed: int = 0) -> nn.Module:
    """The model in eval mode, every parameter random."""
    torch.manual_seed(seed)
    model: nn.Module = getattr(transformers, family.kind)(config_of(family))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(torch.randn_like(parameter) * 0.08)
    return model.eval()
