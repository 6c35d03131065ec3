"""Facts about model families that shapes cannot tell. Keys are config.json's `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Their linear layers are transformers' Conv1D: the weight is stored (in, out).
CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
# Their stacked experts are stored (experts, in, out).
TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "openai_privacy_filter", "aria", "aria_text"})
# So are these, but PEFT takes the axes of their deltas for (experts, out, in) all the same.
SWAPPED_EXPERTS = frozenset({"llama4", "llama4_text"})
# Their gate_up_proj holds gate and up in turns, not one after the other.
INTERLEAVED_EXPERTS = frozenset({"gpt_oss"})


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
# Their runtimes take the embedding for the head whatever the config says.
_NEVER_UNTIED = ("vLLM", "llama.cpp")
_BOTH_STACKS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_T5 = TieRecord(
    embedding="shared.weight", also=_BOTH_STACKS, config={"scale_decoder_outputs": True}
)
_BART = TieRecord(embedding="shared.weight", also=_BOTH_STACKS, every_copy=True)
_WORDS = "embeddings.word_embeddings.weight"
_BERT = TieRecord(
    embedding=_WORDS,
    head="cls.predictions.decoder.weight",
    bias=(("cls.predictions.decoder.bias", "cls.predictions.bias"),),
)
_ROBERTA = TieRecord(
    embedding=_WORDS,
    head="lm_head.decoder.weight",
    bias=(("lm_head.decoder.bias", "lm_head.bias"),),
)
# embed_tokens and lm_head, and nothing else that is tied.
_DECODERS = (
    *("llama", "llama4_text", "mistral", "ministral", "ministral3", "mixtral", "qwen2", "qwen3"),
    *("phi", "phi3", "phimoe", "granite", "granitemoe", "granitemoeshared", "smollm3", "olmo"),
    *("olmo2", "olmo3", "olmoe", "starcoder2", "stablelm", "exaone4", "ernie4_5", "glm", "glm4"),
    *("gpt_oss", "helium", "hunyuan_v1_dense", "lfm2", "minicpm3", "nemotron", "persimmon"),
    *("seed_oss", "apertus", "arcee", "bitnet", "opt", "xglm", "falcon_h1", "internlm3"),
    *("diffllama", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
)

TIES: Mapping[str, TieRecord] = {
    **dict.fromkeys(_DECODERS, _PLAIN),
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "cohere", "cohere2"), TieRecord(runtimes=_NEVER_UNTIED)
    ),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), TieRecord(embedding="wte.weight")),
    "mpt": TieRecord(embedding="wte.weight", runtimes=("vLLM",)),
    **dict.fromkeys(("bloom", "falcon"), TieRecord(embedding="word_embeddings.weight")),
    "gpt_neox": TieRecord(embedding="embed_in.weight", head="embed_out.weight"),
    "mamba": TieRecord(embedding="embeddings.weight"),
    "whisper": TieRecord(embedding="decoder.embed_tokens.weight", head="proj_out.weight"),
    **dict.fromkeys(
        ("mt5", "umt5", "longt5"), TieRecord(embedding="shared.weight", also=_BOTH_STACKS)
    ),
    "t5": _T5,
    **dict.fromkeys(
        ("bart", "mbart", "pegasus", "m2m_100", "nllb-moe", "plbart", "blenderbot"), _BART
    ),
    **dict.fromkeys(("bert", "ernie", "megatron-bert"), _BERT),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet"), _ROBERTA),
    "albert": TieRecord(
        embedding=_WORDS,
        head="predictions.decoder.weight",
        bias=(("predictions.decoder.bias", "predictions.bias"),),
    ),
    "distilbert": TieRecord(embedding=_WORDS, head="vocab_projector.weight"),
    "electra": TieRecord(embedding=_WORDS, head="generator_lm_head.weight"),
    "modernbert": TieRecord(embedding="tok_embeddings.weight", head="decoder.weight"),
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
