"""Small bases in three shards with an adapter each, drawn with numpy: no training library needed.

One pair for every way the engine computes a row. Sizes are no multiples of a tile's height, so
that the last tile of every tensor is a ragged one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bad_builders import header_bytes

HIDDEN, INNER, VOCAB, LAYERS, EXPERTS = 48, 83, 97, 2, 3
RANK, ALPHA = 5, 7
SHARDS = 3
PREFIX = "base_model.model."
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, Array]


@dataclass(frozen=True)
class Pair:
    """A base directory and an adapter directory."""

    base: Path
    adapter: Path


@dataclass(frozen=True)
class Drawn:
    """What a pair is written from: tensors in float32, and both configs."""

    base: Mapping[str, Array]
    base_config: Mapping[str, Any]
    adapter: Mapping[str, Array]
    adapter_config: Mapping[str, Any]


def drawn(seed: int, *shape: int, scale: float = 0.05) -> Array:
    """Normal numbers in float32."""
    values = scale * np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(values, "float32")


def encoded(values: Array, dtype: str) -> bytes:
    """The values' bytes in a dtype of torch's name; bfloat16 rounds to nearest, ties to even."""
    if dtype != "bfloat16":
        return values.astype(dtype).tobytes()
    words = values.astype("float32").view("uint32").astype("uint64")
    rounded = (words + 0x7FFF + (words >> 16 & 1)) >> 16
    return rounded.astype("uint16").tobytes()


def save(path: Path, tensors: Mapping[str, Array], dtype: str) -> None:
    """Write a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, values in tensors.items():
        raw = encoded(values, dtype)
        ends = [len(content), len(content) + len(raw)]
        entry = {"dtype": _NAMES[dtype], "shape": list(values.shape), "data_offsets": ends}
        header[name] = entry
        content += raw
    path.write_bytes(header_bytes(header) + content)


def save_base(
    folder: Path, tensors: Mapping[str, Array], config: Mapping[str, Any], dtype: str
) -> None:
    """A checkpoint in three shards of unlike sizes, with index, config and a tokenizer's files."""
    folder.mkdir(parents=True)
    names = list(tensors)
    cuts = [0, len(names) // 2, len(names) * 4 // 5, len(names)]
    weight_map: dict[str, str] = {}
    for place in range(SHARDS):
        file = f"model-{place + 1:05d}-of-{SHARDS:05d}.safetensors"
        held = {name: tensors[name] for name in names[cuts[place] : cuts[place + 1]]}
        save(folder / file, held, dtype)
        weight_map |= dict.fromkeys(held, file)
    size = sum(len(encoded(values, dtype)) for values in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}, indent=2))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')


def save_adapter(folder: Path, tensors: Mapping[str, Array], config: Mapping[str, Any]) -> None:
    """A PEFT adapter in float32."""
    folder.mkdir(parents=True)
    save(folder / "adapter_model.safetensors", tensors, "float32")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def write(name: str, folder: Path, *, dtype: str = "bfloat16") -> Pair:
    """Write the pair `name` as `folder`/base and `folder`/adapter."""
    made = PAIRS[name]()
    pair = Pair(folder / "base", folder / "adapter")
    save_base(pair.base, made.base, made.base_config, dtype)
    save_adapter(pair.adapter, made.adapter, made.adapter_config)
    return pair


def _linears() -> dict[str, tuple[int, int]]:
    return {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }


def llama_base() -> Tensors:
    """A llama of two layers."""
    tensors = {"model.embed_tokens.weight": drawn(1, VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        for place, (name, shape) in enumerate(_linears().items()):
            tensors[f"model.layers.{layer}.{name}.weight"] = drawn(10 * layer + place, *shape)
        for place, norm in enumerate(("input_layernorm", "post_attention_layernorm")):
            values = 1 + drawn(90 + place, HIDDEN)
            tensors[f"model.layers.{layer}.{norm}.weight"] = values
    tensors["model.norm.weight"] = 1 + drawn(99, HIDDEN)
    tensors["lm_head.weight"] = drawn(2, VOCAB, HIDDEN)
    return tensors


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}


def config_of(**changed: Any) -> dict[str, Any]:
    """An adapter_config.json for rank 5 and alpha 7, a scale that is no power of two."""
    return {
        "base_model_name_or_path": "someone/small",
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_alpha": ALPHA,
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "r": RANK,
        "target_modules": sorted(name.rpartition(".")[2] for name in _linears()),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        **changed,
    }


def lora(module: str, out: int, inner: int, *, seed: int, rank: int = RANK) -> Tensors:
    """One module's factors under PEFT's names."""
    return {
        f"{PREFIX}{module}.lora_A.weight": drawn(seed, rank, inner, scale=0.2),
        f"{PREFIX}{module}.lora_B.weight": drawn(seed + 1, out, rank, scale=0.2),
    }


def llama_factors() -> Tensors:
    """Factors for every linear layer."""
    tensors: Tensors = {}
    for layer in range(LAYERS):
        for place, (name, (out, inner)) in enumerate(_linears().items()):
            module = f"model.layers.{layer}.{name}"
            tensors |= lora(module, out, inner, seed=1000 + 100 * layer + 2 * place)
    return tensors


def _magnitudes(factors: Mapping[str, Array]) -> Tensors:
    """A magnitude for each output of each lora_B."""
    return {
        name.replace("lora_B.weight", "lora_magnitude_vector"): 1 + drawn(len(name), len(factor))
        for name, factor in factors.items()
        if "lora_B" in name
    }


def _plain() -> Drawn:
    return Drawn(llama_base(), LLAMA, llama_factors(), config_of())


def _dora_rows() -> Drawn:
    factors = llama_factors()
    adapter = factors | _magnitudes(factors)
    return Drawn(llama_base(), LLAMA, adapter, config_of(use_dora=True))


def _dora_columns() -> Drawn:
    """GPT-2 keeps its weights transposed: each norm runs down all rows of the file's matrix."""
    shapes = {"attn.c_attn": (HIDDEN, 3 * HIDDEN), "mlp.c_proj": (4 * HIDDEN, HIDDEN)}
    base = {"transformer.wte.weight": drawn(1, VOCAB, HIDDEN)}
    factors: Tensors = {}
    for layer in range(LAYERS):
        for place, (name, (inner, out)) in enumerate(shapes.items()):
            module = f"transformer.h.{layer}.{name}"
            base[f"{module}.weight"] = drawn(10 * layer + place, inner, out)
            base[f"{module}.bias"] = drawn(50 + place, out)
            factors |= lora(module, out, inner, seed=1000 + 100 * layer + 2 * place)
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": HIDDEN,
        "n_head": 4,
        "n_layer": LAYERS,
        "vocab_size": VOCAB,
    }
    adapted = config_of(use_dora=True, fan_in_fan_out=True, target_modules=["c_attn", "mlp.c_proj"])
    return Drawn(base, config, factors | _magnitudes(factors), adapted)


def _experts() -> Drawn:
    """gpt-oss stacks its experts as (experts, in, out); PEFT's factors hold all of them."""
    base = llama_base()
    base = {name: values for name, values in base.items() if ".mlp." not in name}
    adapter: Tensors = {}
    for layer in range(LAYERS):
        module = f"model.layers.{layer}.mlp.experts"
        gate, down = (HIDDEN, 2 * INNER), (INNER, HIDDEN)
        base[f"{module}.gate_up_proj"] = drawn(70 + layer, EXPERTS, *gate)
        base[f"{module}.down_proj"] = drawn(80 + layer, EXPERTS, *down)
        for place, (key, (inner, out)) in enumerate(
            ((f"{module}.base_layer", gate), (module, down))
        ):
            factors = lora(key, out, inner, seed=1000 + 100 * layer + place, rank=EXPERTS * RANK)
            adapter |= factors
    config = LLAMA | {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_local_experts": EXPERTS,
    }
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return Drawn(base, config, adapter, config_of(target_modules=[], target_parameters=parameters))


def _saved() -> Drawn:
    """A whole lm_head and norm beside the factors."""
    adapter = llama_factors()
    adapter[f"{PREFIX}lm_head.weight"] = drawn(7, VOCAB, HIDDEN)
    adapter[f"{PREFIX}model.norm.weight"] = 1 + drawn(8, HIDDEN)
    config = config_of(modules_to_save=["lm_head", "model.norm"])
    return Drawn(llama_base(), LLAMA, adapter, config)


def _saved_parts() -> Drawn:
    """A whole q and the biases of q and v, where phi3 keeps q, k and v in one tensor."""
    base = {
        name: values
        for name, values in llama_base().items()
        if not any(f".{member}_proj." in name for member in "qkv")
    }
    adapter = {name: values for name, values in llama_factors().items() if "q_proj" not in name}
    for layer in range(LAYERS):
        module = f"model.layers.{layer}.self_attn"
        base[f"{module}.qkv_proj.weight"] = drawn(70 + layer, 2 * HIDDEN, HIDDEN)
        base[f"{module}.qkv_proj.bias"] = drawn(80 + layer, 2 * HIDDEN)
        adapter[f"{PREFIX}{module}.q_proj.weight"] = drawn(7 + layer, HIDDEN, HIDDEN)
        adapter[f"{PREFIX}{module}.q_proj.bias"] = drawn(17 + layer, HIDDEN)
        adapter[f"{PREFIX}{module}.v_proj.bias"] = drawn(27 + layer, HIDDEN // 2)
    config = LLAMA | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
    targets = [name for name in config_of()["target_modules"] if name != "q_proj"]
    adapted = config_of(bias="all", modules_to_save=["q_proj"], target_modules=targets)
    return Drawn(base, config, adapter, adapted)


def _embedding() -> Drawn:
    """An embedding's factors, whose product is transposed."""
    module = "model.embed_tokens"
    adapter = llama_factors() | {
        f"{PREFIX}{module}.lora_embedding_A": drawn(5, RANK, VOCAB, scale=0.2),
        f"{PREFIX}{module}.lora_embedding_B": drawn(6, HIDDEN, RANK, scale=0.2),
    }
    targets = ["embed_tokens", *config_of()["target_modules"]]
    return Drawn(llama_base(), LLAMA, adapter, config_of(target_modules=targets))


def _token_rows() -> Drawn:
    """Three rows of the embedding, trained on their own, the last row among them."""
    key = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
    adapter = llama_factors() | {key: drawn(5, 3, HIDDEN)}
    config = config_of(trainable_token_indices=[VOCAB - 1, 2, 40])
    return Drawn(llama_base(), LLAMA, adapter, config)


PAIRS: Mapping[str, Callable[[], Drawn]] = {
    "lora": _plain,
    "dora-rows": _dora_rows,
    "dora-columns": _dora_columns,
    "experts": _experts,
    "modules-to-save": _saved,
    "saved-parts": _saved_parts,
    "embedding": _embedding,
    "token-rows": _token_rows,
}
