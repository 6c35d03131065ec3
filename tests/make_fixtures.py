"""Writes fixtures/: a tiny llama base in two shards and a LoRA adapter for it.

Run `python tests/make_fixtures.py` to write them again; a test compares the bytes. Files and fields
are those that transformers 5.23 and PEFT 0.21.2 write for a model of this shape.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import TensorSpec, serialize

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
HIDDEN, INNER, KEYS, VOCAB, LAYERS = 64, 128, 32, 256, 2
RANK, ALPHA = 8, 16
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "transformers_version": "5.23.0",
    "use_cache": True,
    "vocab_size": VOCAB,
}
GENERATION_CONFIG = {
    "_from_model_config": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "transformers_version": "5.23.0",
    "use_cache": True,
}
TOKENIZER_CONFIG = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "model_max_length": 512,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "<unk>",
}
ADAPTER_CONFIG = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "fixtures/base",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": ALPHA,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": RANK,
    "rank_pattern": {},
    "revision": None,
    "target_modules": sorted(name.rpartition(".")[2] for name in LINEARS),
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}

Tensor = tuple[str, tuple[int, ...], bytes]


def _bell(rng: random.Random, count: int, scale: float) -> Iterator[float]:
    # Four uniform numbers summed look normal and need no libm: the same bits on every machine.
    for _ in range(count):
        yield scale * 3**0.5 * (sum(rng.random() for _ in range(4)) - 2)


def _floats(rng: random.Random, shape: tuple[int, ...], scale: float, shift: float = 0.0) -> bytes:
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    return struct.pack(f"<{count}f", *(value + shift for value in _bell(rng, count, scale)))


def _bfloat16(floats: bytes) -> bytes:
    """Rounded to nearest, ties to even."""
    words = struct.unpack(f"<{len(floats) // 4}I", floats)
    halves = ((word + 0x7FFF + (word >> 16 & 1)) >> 16 for word in words)
    return struct.pack(f"<{len(words)}H", *halves)


def _base_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in LINEARS.items()}
        shapes[f"{prefix}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (HIDDEN,)
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def _base_tensors() -> dict[str, Tensor]:
    rng = random.Random(20)
    return {
        name: (
            "bfloat16",
            shape,
            _bfloat16(_floats(rng, shape, 0.02, shift=1.0 if len(shape) == 1 else 0.0)),
        )
        for name, shape in _base_shapes().items()
    }


def _adapter_tensors() -> dict[str, Tensor]:
    rng = random.Random(21)
    tensors: dict[str, Tensor] = {}
    for layer in range(LAYERS):
        for name, (out, inner) in LINEARS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            for factor, shape in (("lora_A", (RANK, inner)), ("lora_B", (out, RANK))):
                tensors[f"{prefix}.{factor}.weight"] = ("float32", shape, _floats(rng, shape, 0.02))
    return tensors


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file: name -> (torch dtype name, shape, bytes)."""
    specs = {
        # The pointer stays valid: `tensors` holds the bytes until the file is serialised.
        name: TensorSpec(
            dtype=dtype,
            shape=list(shape),
            data_ptr=np.frombuffer(content, np.uint8).ctypes.data,
            data_len=len(content),
        )
        for name, (dtype, shape, content) in tensors.items()
    }
    path.write_bytes(serialize(specs, metadata={"format": "pt"}))


def _save_json(path: Path, body: object) -> None:
    path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tokenizer() -> dict[str, object]:
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, VOCAB))]
    vocabulary = {word: number for number, word in enumerate(words)}
    special = [
        {
            "id": number,
            "content": words[number],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number in range(3)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }


def _write_base(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _base_tensors()
    second = {name for name in tensors if name.startswith(("model.layers.1.", "model.norm", "lm_"))}
    shards = {
        "model-00001-of-00002.safetensors": [name for name in tensors if name not in second],
        "model-00002-of-00002.safetensors": [name for name in tensors if name in second],
    }
    for file, names in shards.items():
        save_tensors(folder / file, {name: tensors[name] for name in names})
    total = sum(len(content) for _, _, content in tensors.values())
    index = {
        "metadata": {"total_parameters": total // 2, "total_size": total},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    _save_json(folder / "model.safetensors.index.json", index)
    _save_json(folder / "config.json", CONFIG)
    _save_json(folder / "generation_config.json", GENERATION_CONFIG)
    _save_json(folder / "tokenizer.json", _tokenizer())
    _save_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)


def _write_adapter(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "adapter_model.safetensors", _adapter_tensors())
    _save_json(folder / "adapter_config.json", ADAPTER_CONFIG)


def write_fixtures(folder: Path) -> None:
    """Write `folder`/base and `folder`/adapter."""
    _write_base(folder / "base")
    _write_adapter(folder / "adapter")


if __name__ == "__main__":
    write_fixtures(Path(sys.argv[1]) if len(sys.argv) > 1 else FIXTURES)
