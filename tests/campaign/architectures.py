"""Small models of every architecture that the campaign draws from: `family_models` and many more.

A row is a `Family`: the class in transformers, its config, and settings that make it tiny.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn

from family_models import DECODER, FAMILIES, VOCAB, Family

_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_PLAIN = {"vocab_size": VOCAB, "num_hidden_layers": 2, **_TOKENS}
_NO_HEAD_DIM = {key: value for key, value in DECODER.items() if key != "head_dim"}
_ENCODER = FAMILIES["bert"].settings
_SEQ2SEQ = FAMILIES["bart"].settings
_T5 = FAMILIES["t5"].settings
_MOE = {**DECODER, "num_experts_per_tok": 2}
_GPT = FAMILIES["gpt2"].settings
_TOWER = FAMILIES["siglip"].settings["vision_config"]
_NARROW_TEXT = {**_ENCODER, "projection_size": 16}
_CLASSES = {"num_labels": 5}
_LLAMA = {"model_type": "llama", **DECODER}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
_WIDE = {"num_attention_heads": 4, "max_position_embeddings": 64}
Table = Mapping[str, Family]


def _family(kind: str, config: str, settings: Mapping[str, Any]) -> Family:
    return Family(kind, config, settings, targets=())


def _decoder(name: str, settings: Mapping[str, Any], **more: Any) -> Family:
    return _family(f"{name}ForCausalLM", f"{name}Config", {**settings, **more})


_DENSE: Table = {
    "mistral": _decoder("Mistral", DECODER),
    "qwen2": _decoder("Qwen2", _NO_HEAD_DIM),
    "gemma": _decoder("Gemma", DECODER),
    "gemma3_text": _family("Gemma3ForCausalLM", "Gemma3TextConfig", DECODER),
    "gemma3n_text": _family(
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        {**DECODER, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCAB}
        | {"hidden_size_per_layer_input": 8, "laurel_rank": 4},
    ),
    "cohere": _decoder("Cohere", _NO_HEAD_DIM),
    "cohere2": _decoder("Cohere2", _NO_HEAD_DIM),
    "stablelm": _decoder("StableLm", _NO_HEAD_DIM, use_qkv_bias=True),
    "olmo": _decoder("Olmo", _NO_HEAD_DIM),
    "olmo2": _decoder("Olmo2", _NO_HEAD_DIM),
    "olmo3": _decoder("Olmo3", _NO_HEAD_DIM),
    "granite": _decoder("Granite", _NO_HEAD_DIM),
    "nemotron": _decoder("Nemotron", DECODER),
    "glm": _decoder("Glm", DECODER),
    "glm4": _decoder("Glm4", DECODER),
    "starcoder2": _decoder("Starcoder2", _NO_HEAD_DIM),
    "phi": _decoder("Phi", _NO_HEAD_DIM),
    "smollm3": _decoder("SmolLM3", _NO_HEAD_DIM),
    "exaone4": _decoder("Exaone4", _NO_HEAD_DIM, sliding_window=16, sliding_window_pattern=2),
    "helium": _decoder("Helium", DECODER),
    "ministral": _decoder("Ministral", DECODER),
    "arcee": _decoder("Arcee", _NO_HEAD_DIM),
    "seed_oss": _decoder("SeedOss", DECODER),
    "apertus": _decoder("Apertus", _NO_HEAD_DIM),
    "hunyuan": _decoder("HunYuanDenseV1", DECODER),
    "persimmon": _decoder(
        "Persimmon", {k: v for k, v in _NO_HEAD_DIM.items() if k != "num_key_value_heads"}
    ),
    "opt": _decoder(
        "OPT", {**_PLAIN, **_WIDE, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48}
    ),
    "opt_projected": _decoder(
        "OPT",
        {**_PLAIN, **_WIDE, "hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 48},
        do_layer_norm_before=False,
    ),
    "xglm": _decoder(
        "XGLM",
        {**_TOKENS, "vocab_size": VOCAB, "d_model": 32, "ffn_dim": 48, "num_layers": 2},
        attention_heads=4,
        max_position_embeddings=64,
    ),
    "biogpt": _decoder("BioGpt", _ENCODER),
}
_GPTS: Table = {
    "gptj": _decoder("GPTJ", _GPT, rotary_dim=4),
    "codegen": _decoder("CodeGen", _GPT, rotary_dim=4, n_ctx=64),
    "gpt_bigcode": _decoder("GPTBigCode", _GPT),
    "gpt_neo": _decoder(
        "GPTNeo",
        {**_TOKENS, "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4},
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
        intermediate_size=48,
    ),
    "openai_gpt": _family(
        "OpenAIGPTLMHeadModel",
        "OpenAIGPTConfig",
        {key: value for key, value in _GPT.items() if not key.endswith("_id")},
    ),
    "imagegpt": _family(
        "ImageGPTForCausalImageModeling", "ImageGPTConfig", {**_GPT, "vocab_size": 65}
    ),
    "ctrl": _family(
        "CTRLLMHeadModel",
        "CTRLConfig",
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 64,
            "dff": 48,
        },
    ),
    "mpt": _decoder(
        "Mpt",
        {**_TOKENS, "vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 2},
        max_seq_len=64,
    ),
}
_RECURRENT: Table = {
    "rwkv": _decoder(
        "Rwkv", {**_PLAIN, "hidden_size": 32, "attention_hidden_size": 32, "intermediate_size": 48}
    ),
    "lfm2": _decoder(
        "Lfm2", _NO_HEAD_DIM, layer_types=["conv", "full_attention"], full_attn_idxs=[1]
    ),
    "bamba": _decoder(
        "Bamba",
        _NO_HEAD_DIM,
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
    ),
    "recurrent_gemma": _decoder(
        "RecurrentGemma", DECODER, lru_width=32, attention_window_size=16, num_hidden_layers=3
    ),
    "zamba": _decoder(
        "Zamba",
        _NO_HEAD_DIM,
        num_hidden_layers=3,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        n_mamba_heads=2,
        use_mamba_kernels=False,
    ),
    "qwen3_5": _family(
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        {
            **DECODER,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
}
_EXPERTS: Table = {
    "dbrx": _decoder(
        "Dbrx",
        {**_TOKENS, "vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 2},
        max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    "jetmoe": _decoder(
        "JetMoe",
        {**_PLAIN, "hidden_size": 32, "num_key_value_heads": 2, "kv_channels": 8},
        intermediate_size=24,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    ),
    "dots1": _decoder(
        "Dots1",
        _MOE,
        moe_intermediate_size=24,
        n_routed_experts=4,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    ),
    "minimax": _decoder(
        "MiniMax",
        _MOE,
        num_local_experts=4,
        layer_types=["full_attention", "linear_attention"],
        block_size=8,
    ),
    "flex_olmo": _decoder("FlexOlmo", _MOE, num_experts=4),
    "lfm2_moe": _decoder(
        "Lfm2Moe",
        _MOE,
        moe_intermediate_size=24,
        num_experts=4,
        num_dense_layers=1,
        layer_types=["conv", "full_attention"],
    ),
    "aria_text": _family(
        "AriaTextForCausalLM",
        "AriaTextConfig",
        {**DECODER, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    ),
    "switch": _family(
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        {**_T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
}
_TRANSLATORS: Table = {
    "pegasus": _family("PegasusForConditionalGeneration", "PegasusConfig", _SEQ2SEQ),
    "m2m_100": _family("M2M100ForConditionalGeneration", "M2M100Config", _SEQ2SEQ),
    "blenderbot": _family("BlenderbotForConditionalGeneration", "BlenderbotConfig", _SEQ2SEQ),
    "longt5": _family("LongT5ForConditionalGeneration", "LongT5Config", {**_T5, "local_radius": 4}),
}
_READERS: Table = {
    "albert": _family("AlbertForMaskedLM", "AlbertConfig", {**_ENCODER, "embedding_size": 16}),
    "bert_masked": _family("BertForMaskedLM", "BertConfig", _ENCODER),
    "roberta_masked": _family("RobertaForMaskedLM", "RobertaConfig", _ENCODER),
    "roberta_scorer": _family("RobertaForSequenceClassification", "RobertaConfig", _ENCODER),
    "deberta": _family(
        "DebertaForMaskedLM",
        "DebertaConfig",
        {**_ENCODER, "pos_att_type": ["p2c", "c2p"], "relative_attention": True},
    ),
    "mpnet": _family("MPNetForMaskedLM", "MPNetConfig", _ENCODER),
    "esm": _family("EsmForMaskedLM", "EsmConfig", {**_ENCODER, "mask_token_id": 3}),
    "convbert": _family(
        "ConvBertForMaskedLM", "ConvBertConfig", {**_ENCODER, "embedding_size": 16}
    ),
    "squeezebert": _family(
        "SqueezeBertForMaskedLM", "SqueezeBertConfig", {**_ENCODER, "embedding_size": 32}
    ),
    "bert_bare": _family("BertModel", "BertConfig", _ENCODER),
    "blip_text": _family(
        "BlipTextModel",
        "BlipTextConfig",
        {**_ENCODER, "encoder_hidden_size": 32, "is_decoder": False},
    ),
    "llama_scorer": _family(
        "LlamaForSequenceClassification", "LlamaConfig", {**DECODER, "num_labels": 3}
    ),
    "llama_tagger": _family(
        "LlamaForTokenClassification", "LlamaConfig", {**DECODER, "num_labels": 3}
    ),
    "llama_bare": _family("LlamaModel", "LlamaConfig", DECODER),
}
_PICTURES: Table = {
    "convnext": _family(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2, **_CLASSES},
    ),
    "resnet": _family(
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        | _CLASSES,
    ),
    "swin": _family(
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
        | {"window_size": 2, **_CLASSES},
    ),
    "segformer": _family(
        "SegformerForImageClassification",
        "SegformerConfig",
        {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
        | {"patch_sizes": [3, 3], "strides": [2, 2], "num_attention_heads": [1, 2]}
        | {"mlp_ratios": [2, 2], **_CLASSES},
    ),
    "beit": _family("BeitForImageClassification", "BeitConfig", {**_TOWER, **_CLASSES}),
    "deit": _family("DeiTForImageClassification", "DeiTConfig", {**_TOWER, **_CLASSES}),
    "hubert": _family("HubertForCTC", "HubertConfig", FAMILIES["wav2vec2"].settings),
}
_BOTH: Table = {
    "chinese_clip": _family(
        "ChineseCLIPModel",
        "ChineseCLIPConfig",
        {
            "text_config": _ENCODER,
            "vision_config": {**_TOWER, "projection_dim": 16},
            "projection_dim": 16,
        },
    ),
    "siglip": _family(
        "SiglipModel", "SiglipConfig", {"text_config": _NARROW_TEXT, "vision_config": _TOWER}
    ),
    "siglip2": _family(
        "Siglip2Model",
        "Siglip2Config",
        {
            "text_config": _NARROW_TEXT,
            "vision_config": {k: v for k, v in _TOWER.items() if k != "image_size"},
        },
    ),
    "smolvlm": _family(
        "SmolVLMForConditionalGeneration", "SmolVLMConfig", FAMILIES["idefics3"].settings
    ),
    "aya": _family(
        "AyaVisionForConditionalGeneration",
        "AyaVisionConfig",
        {
            "vision_config": {
                "model_type": "siglip_vision_model",
                **_TOWER,
                "vision_use_head": False,
            },
            "text_config": {"model_type": "cohere2", **_NO_HEAD_DIM},
            "downsample_factor": 2,
        },
    ),
    "vipllava": _family(
        "VipLlavaForConditionalGeneration",
        "VipLlavaConfig",
        {
            "vision_config": {"model_type": "clip_vision_model", **_TOWER, "projection_dim": 16},
            "text_config": _LLAMA,
            "vision_feature_layers": [-1, -2],
        },
    ),
    "glm4v": _family(
        "Glm4vForConditionalGeneration",
        "Glm4vConfig",
        {
            "text_config": {**DECODER, "rope_parameters": _MROPE},
            "vision_config": {
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "patch_size": 4,
                "image_size": 8,
                "out_hidden_size": 32,
            },
        },
    ),
    "deepseek_vl": _family(
        "DeepseekVLForConditionalGeneration",
        "DeepseekVLConfig",
        {
            "text_config": _LLAMA,
            "vision_config": {"model_type": "siglip_vision_model", **_TOWER},
        },
    ),
}
ARCHITECTURES: Table = {
    **FAMILIES,
    **_DENSE,
    **_GPTS,
    **_RECURRENT,
    **_EXPERTS,
    **_TRANSLATORS,
    **_READERS,
    **_PICTURES,
    **_BOTH,
}
_NOT_NOISE = ("A_log", "D")  # a state-space model diverges where these are large


def kind_of(name: str) -> Any:
    """The architecture's class in transformers."""
    return getattr(transformers, ARCHITECTURES[name].kind)


def build(name: str, *, tie: bool | None, seed: int) -> nn.Module:
    """The model in eval mode with random weights; `tie` None: as its config has it."""
    torch.manual_seed(seed)
    family = ARCHITECTURES[name]
    settings = dict(family.settings)
    if tie is not None:
        settings["tie_word_embeddings"] = tie
        if isinstance(settings.get("text_config"), Mapping):
            settings["text_config"] = {**settings["text_config"], "tie_word_embeddings": tie}
    config = getattr(transformers, family.config)(**settings)
    model: nn.Module = kind_of(name)(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.is_floating_point():
                _loosen(key, parameter)
    return model.eval()


def _loosen(name: str, parameter: torch.Tensor) -> None:
    """Large enough that a wrong delta is seen in the output, small enough to stay finite."""
    noise = torch.randn_like(parameter)
    if parameter.dim() < 2 or name.endswith(_NOT_NOISE):
        parameter.add_(0.1 * noise)
    else:
        parameter.copy_(noise * (0.25 if parameter.shape[-1] > 8 else 0.4))


@cache
def names() -> tuple[str, ...]:
    """The architectures, sorted: a seed draws from them by place."""
    return tuple(sorted(ARCHITECTURES))
