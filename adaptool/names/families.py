"""Facts about model families that shapes cannot tell. Keys are config.json's `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Their linear layers are transformers' Conv1D: the weight is stored (in, out).
CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
# Their stacked experts are stored (experts, in, out).
TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "openai_privacy_filter", "aria", "aria_text"})
# So are these, but PEFT takes the axes of their deltas for (experts, out, in) all the same.
SWAPPED_EXPERTS = frozenset({"llama4", "llama4_text"})
# Their gate_up_proj holds gate and up in turns, not one after the other.
INTERLEAVED_EXPERTS = frozenset({"gpt_oss"})


# Their runtimes take the embedding for the head whatever the config says.
NEVER_UNTIED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "cohere", "cohere2"), ("vLLM", "llama.cpp")),
    "mpt": ("vLLM",),
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
    return _count(config, "num_attention_heads", "n_head")


def key_value_heads(config: Mapping[str, Any] | None) -> int:
    """Heads of k and v, as many as q has where the config says nothing of them."""
    found = _count(config, "num_key_value_heads")
    if found or not (config or {}).get("multi_query"):
        return found or head_count(config)
    return 1


def _count(config: Mapping[str, Any] | None, *keys: str) -> int:
    for place in (config or {}, (config or {}).get("text_config")):
        if isinstance(place, Mapping):
            for key in keys:
                found = place.get(key)
                if type(found) is int:
                    return found
    return 0
