"""Facts about model families that shapes cannot tell. Keys are config.json's `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Their linear layers are transformers' Conv1D: the weight is stored (in, out).
CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
# Their stacked experts are stored (experts, in, out).
TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "openai_privacy_filter", "aria"})


@dataclass(frozen=True, slots=True)
class TieRecord:
    """How a family's tied weights come apart, known to load and mean the same.

    `embedding` and `head` are name endings of the two tied tensors; `also` are further tensors
    that share the embedding, written where they change, or always where the loader wants
    `every_copy`; `bias` pairs a tensor that the untied model wants with the one it is a copy of;
    `config` are keys to set beside `tie_word_embeddings`; `runtimes` cannot load the untied model.
    Checked by loading each in transformers 5.23.
    """

    embedding: str = "embed_tokens.weight"
    head: str = "lm_head.weight"
    also: tuple[str, ...] = ()
    every_copy: bool = False
    bias: tuple[tuple[str, str], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    runtimes: tuple[str, ...] = ()


_PLAIN = TieRecord()
_GEMMA = TieRecord(runtimes=("vLLM", "llama.cpp"))
_BOTH_STACKS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

TIES: Mapping[str, TieRecord] = {
    "llama": _PLAIN,
    "mistral": _PLAIN,
    "qwen2": _PLAIN,
    "qwen3": _PLAIN,
    "phi3": _PLAIN,
    "granite": _PLAIN,
    "smollm3": _PLAIN,
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": TieRecord(embedding="wte.weight"),
    "opt": TieRecord(),
    "whisper": TieRecord(embedding="decoder.embed_tokens.weight", head="proj_out.weight"),
    "umt5": TieRecord(embedding="shared.weight", also=_BOTH_STACKS),
    "t5": TieRecord(
        embedding="shared.weight", also=_BOTH_STACKS, config={"scale_decoder_outputs": True}
    ),
    "bart": TieRecord(embedding="shared.weight", also=_BOTH_STACKS, every_copy=True),
    "bert": TieRecord(
        embedding="embeddings.word_embeddings.weight",
        head="cls.predictions.decoder.weight",
        bias=(("cls.predictions.decoder.bias", "cls.predictions.bias"),),
    ),
}


def model_types(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """`model_type` of a config and of its sub-configs, outermost first."""
    if not config:
        return ()
    found = [config["model_type"]] if isinstance(config.get("model_type"), str) else []
    for key in sorted(config):
        inner = config[key]
        if key.endswith("_config") and isinstance(inner, Mapping):
            found += [name for name in model_types(inner) if name not in found]
    return tuple(found)


def head_count(config: Mapping[str, Any] | None) -> int:
    """Attention heads of the (text) model, 0 where the config does not say."""
    for place in (config or {}, (config or {}).get("text_config")):
        if isinstance(place, Mapping):
            for key in ("num_attention_heads", "n_head"):
                if type(place.get(key)) is int:
                    heads: int = place[key]
                    return heads
    return 0
