"""Tiny models with random weights: every architecture whose weights lie differently on disk.

`MODELS` maps a name to a function that builds the model; `inputs_for` gives what its forward takes.
Sizes are such that a wrong order of heads, of experts or of axes cannot pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

VOCAB = 64
IMAGE_TOKEN = 60
DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


class ConvNet(nn.Module):
    """An embedding, convolutions of every dimension, one of them grouped, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.conv1 = nn.Conv1d(8, 12, 3)
        self.conv2 = nn.Conv2d(1, 6, 3)
        self.pointwise = nn.Conv2d(6, 10, 1)
        self.conv3 = nn.Conv3d(1, 4, 2)
        self.grouped = nn.Conv1d(12, 8, 3, groups=2)
        self.square = nn.Linear(8, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, 5) from (batch, 14) token ids."""
        hidden = self.conv1(self.embed(tokens).transpose(1, 2))
        flat = self.pointwise(self.conv2(hidden.unsqueeze(1))).mean(1)
        cube = self.conv3(flat.reshape(flat.shape[0], 1, 2, -1, flat.shape[2])).mean((1, 2, 3))
        mixed = self.grouped(hidden).mean(2) + cube.mean(1, keepdim=True)
        return self.out(torch.tanh(self.square(mixed)))


class Attention(nn.Module):
    """torch's own attention: one fused in_proj_weight that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.mha = nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, length, 5) from (batch, length) token ids."""
        hidden = self.embed(tokens)
        return self.out(self.mha(hidden, hidden, hidden, need_weights=False)[0])


def _moe(**changes: Any) -> dict[str, Any]:
    return {**DECODER, "num_experts_per_tok": 2, **changes}


def _gpt_oss(**changes: Any) -> nn.Module:
    config = GptOssConfig(**_moe(num_local_experts=3, head_dim=8, sliding_window=16, **changes))
    return GptOssForCausalLM(config)


def _llama4() -> nn.Module:
    config = Llama4TextConfig(
        **{**DECODER, "num_experts_per_tok": 1},
        num_local_experts=3,
        intermediate_size_mlp=40,
        head_dim=8,
        interleave_moe_layer_step=1,
        attention_chunk_size=32,
        tie_word_embeddings=False,
    )
    return Llama4ForCausalLM(config)


def _llava(*, tied: bool = False) -> nn.Module:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "projection_dim": 16,
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **DECODER, "tie_word_embeddings": tied},
        image_token_index=IMAGE_TOKEN,
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    return LlavaForConditionalGeneration(config)


def _t5(*, tied: bool = True) -> nn.Module:
    config = T5Config(
        vocab_size=VOCAB,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        tie_word_embeddings=tied,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def _bert(kind: Callable[[BertConfig], nn.Module], **changes: Any) -> nn.Module:
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        **changes,
    )
    return kind(config)


def _vit() -> nn.Module:
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    return ViTForImageClassification(config)


def _gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_head=4,
        n_layer=2,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


def _opt() -> nn.Module:
    config = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return OPTForCausalLM(config)


def _gpt_neox() -> nn.Module:
    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return GPTNeoXForCausalLM(config)


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=False)),
    "llama_scorer": lambda: LlamaForSequenceClassification(LlamaConfig(**DECODER, num_labels=3)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER, tie_word_embeddings=True)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**DECODER, head_dim=8)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**DECODER, head_dim=8)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**DECODER, tie_word_embeddings=False)),
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
    "t5": _t5,
    "t5_untied": lambda: _t5(tied=False),
    "bert": lambda: _bert(BertForMaskedLM),
    "bert_scorer": lambda: _bert(BertForSequenceClassification, num_labels=3),
    "bert_tagger": lambda: _bert(BertForTokenClassification),
    "vit": _vit,
    "llava": _llava,
    "llava_tied": lambda: _llava(tied=True),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_moe(num_local_experts=3))),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**_moe(num_experts=3, moe_intermediate_size=24, head_dim=8))
    ),
    "mixtral_square": lambda: MixtralForCausalLM(
        MixtralConfig(**_moe(num_local_experts=3, intermediate_size=16))
    ),
    "gpt_oss": _gpt_oss,
    "gpt_oss_square": lambda: _gpt_oss(intermediate_size=32),
    "llama4": _llama4,
    "convnet": ConvNet,
    "attention": Attention,
}


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model in eval mode, every parameter random, biases and norms too."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model.to(dtype).eval()


def inputs_for(name: str) -> dict[str, torch.Tensor]:
    """Keyword arguments of the model's forward."""
    draw = torch.Generator().manual_seed(5)
    if name in ("convnet", "attention"):
        return {"tokens": torch.randint(0, 20, (2, 14), generator=draw)}
    pixels = {"vit": 16, "llava": 8, "llava_tied": 8}
    found = {}
    if name in pixels:
        size = pixels[name]
        found["pixel_values"] = torch.randn(1, 3, size, size, generator=draw)
    if name != "vit":
        found["input_ids"] = torch.randint(3, IMAGE_TOKEN, (1, 12), generator=draw)
    if name.startswith("llava"):
        found["input_ids"][0, 2:6] = IMAGE_TOKEN
    if name.startswith("t5"):
        found["decoder_input_ids"] = torch.randint(3, VOCAB, (1, 5), generator=draw)
    return found


def answer(model: nn.Module, name: str) -> torch.Tensor:
    """The model's logits on `inputs_for(name)`, in float32."""
    with torch.inference_mode():
        found = model(**inputs_for(name))
    logits = found if isinstance(found, torch.Tensor) else found.logits
    return logits.float()
