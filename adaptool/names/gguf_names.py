"""Module paths of transformers and the tensor names that llama.cpp gives them, by architecture.

Source: llama.cpp, gguf-py/gguf/tensor_mapping.py (the tests ask that package), and the classes of
its conversion/ folder for what is permuted and which `model_type` is which architecture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from adaptool.names.families import model_types

EMBEDDING = "token_embd"
FUSED = "attn_qkv"
_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_EXPERTS = {
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_MIXTRAL = {
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
    "mlp.gate": "ffn_gate_inp",
    **_EXPERTS,
}
_SHARED_EXPERT = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_PHI2 = {
    **{name: there for name, there in _ATTENTION.items() if name != "self_attn.o_proj"},
    "self_attn.dense": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_PHI3 = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2 = {
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_BLOOM = {
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
# A multimodal model keeps its language model, which is what llama.cpp adapts, one level deeper.
_VLM_LAYERS = "model.language_model.layers"
_VLM_EMBEDDING = "model.language_model.embed_tokens"
_LAYER = re.compile(
    r"(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.|transformer\.|)"
    r"(?:layers|h)\.(\d{1,6})\.(.+)"
)
_EXPERT = re.compile(r"(.+\.experts)\.(\d{1,6})\.([^.]+)")
_BLOCK = re.compile(r"blk\.(\d{1,6})\.([a-z_]+)")
STACK = "_exps"


@dataclass(frozen=True, slots=True)
class Architecture:
    """The names inside a layer, where several fit the preferred one first.

    `permuted`: the rows of q and k stand in another order than in transformers, pairs of rotary
    dimensions side by side. `per_head`: transformers keeps q, k and v of one head together,
    llama.cpp all of q first. `layers` is where the layers are, `embedding` the input's.
    """

    name: str
    inside: Mapping[str, str]
    permuted: bool = False
    per_head: bool = False
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"

    @property
    def outside(self) -> Mapping[str, str]:
        """The names outside of layers."""
        return {self.embedding: EMBEDDING, "lm_head": "output"}


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        each.name: each
        for each in (
            Architecture("llama", {**_ATTENTION, **_MLP, **_MIXTRAL}, permuted=True),
            Architecture("smollm3", {**_ATTENTION, **_MLP}, permuted=True),
            Architecture("granite", {**_ATTENTION, **_MLP}, permuted=True),
            Architecture("qwen2", {**_ATTENTION, **_MLP}),
            Architecture("qwen2moe", {**_ATTENTION, **_EXPERTS, **_SHARED_EXPERT}),
            Architecture("qwen3", {**_ATTENTION, **_MLP}),
            Architecture("qwen3moe", {**_ATTENTION, **_EXPERTS, "mlp.gate": "ffn_gate_inp"}),
            Architecture("gemma", {**_ATTENTION, **_MLP}),
            Architecture("gemma2", {**_ATTENTION, **_MLP}),
            Architecture("gemma3", {**_ATTENTION, **_MLP}),
            Architecture("phi2", _PHI2),
            Architecture("phi3", _PHI3),
            Architecture(
                "qwen2vl", {**_ATTENTION, **_MLP}, layers=_VLM_LAYERS, embedding=_VLM_EMBEDDING
            ),
            Architecture(
                "qwen3vl", {**_ATTENTION, **_MLP}, layers=_VLM_LAYERS, embedding=_VLM_EMBEDDING
            ),
            Architecture("gpt2", _GPT2, layers="transformer.h", embedding="transformer.wte"),
            Architecture(
                "bloom",
                _BLOOM,
                per_head=True,
                layers="transformer.h",
                embedding="transformer.word_embeddings",
            ),
        )
    }
)
"""By `general.architecture`."""

_BY_MODEL_TYPE: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3")},
        **{name: name for name in ("smollm3", "granite")},
        "mistral": "llama",
        "mixtral": "llama",
        "qwen2_moe": "qwen2moe",
        "qwen3_moe": "qwen3moe",
        "gemma3_text": "gemma3",
        "phi": "phi2",
        "gpt2": "gpt2",
        "bloom": "bloom",
        **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), "qwen2vl"),
        "qwen3_vl": "qwen3vl",
    }
)


def architecture_of(config: Mapping[str, Any] | None) -> Architecture | None:
    """The architecture that llama.cpp knows a base by; None for one that is not known here."""
    for model_type in model_types(config):
        if model_type in _BY_MODEL_TYPE:
            return ARCHITECTURES[_BY_MODEL_TYPE[model_type]]
    return None


def gguf_name(architecture: Architecture, module: str) -> tuple[str, int | None] | None:
    """`model.layers.3.mlp.experts.5.up_proj` -> (`blk.3.ffn_up_exps`, 5); None where none fits.

    The number is that of an expert in a stack.
    """
    for path, name in architecture.outside.items():
        if module == path or module.endswith(f".{path.rpartition('.')[2]}"):
            return name, None
    found = _LAYER.fullmatch(module)
    if found is None:
        return None
    layer, path = found.groups()
    expert = _EXPERT.fullmatch(path)
    if expert is not None:
        stack = architecture.inside.get(f"{expert[1]}.{expert[3]}")
        return None if stack is None else (f"blk.{layer}.{stack}", int(expert[2]))
    single = architecture.inside.get(path)
    return None if single is None else (f"blk.{layer}.{single}", None)


def module_path(architecture: Architecture, name: str, expert: int | None = None) -> str | None:
    """The module that a tensor name (without `.weight`) stands for; None where none fits."""
    for path, there in architecture.outside.items():
        if name == there:
            return path
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    for path, there in architecture.inside.items():
        if there == found[2]:
            return f"{architecture.layers}.{found[1]}.{_numbered(path, expert)}"
    return None


def _numbered(path: str, expert: int | None) -> str:
    if expert is None:
        return path
    parent, _, name = path.rpartition(".")
    return f"{parent}.{expert}.{name}"
