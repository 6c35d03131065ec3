"""Writes a base shaped like Qwen2-1.5B (or a tiny one of the same kind) and a LoRA for it.

The weights are random: blocks of normal numbers, used again from tensor to tensor, so that 3 GB
take seconds. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 22
RANK, ALPHA = 16, 32
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """The numbers of a Qwen2 config."""

    hidden: int
    inner: int
    heads: int
    key_heads: int
    layers: int
    vocabulary: int
    shards: int

    @property
    def keys(self) -> int:
        """Rows of k_proj and v_proj."""
        return self.hidden // self.heads * self.key_heads


SIZES = {
    "qwen2-1.5b": Size(1536, 8960, 12, 2, 28, 151936, 4),
    "tiny": Size(64, 128, 4, 2, 2, 512, 2),
}


def linears(size: Size) -> Shapes:
    """The seven linears of a layer."""
    hidden, keys, inner = size.hidden, size.keys, size.inner
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def base_shapes(size: Size) -> Shapes:
    """Every tensor of the base; embeddings are tied, as in the original."""
    shapes: Shapes = {"model.embed_tokens.weight": (size.vocabulary, size.hidden)}
    for layer in range(size.layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in linears(size).items()}
        for name in ("q_proj", "k_proj", "v_proj"):
            rows = linears(size)[f"self_attn.{name}"][0]
            shapes[f"{prefix}.self_attn.{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (size.hidden,)
    return shapes | {"model.norm.weight": (size.hidden,)}


def adapter_shapes(size: Size) -> Shapes:
    """A and B of every linear of every layer."""
    shapes: Shapes = {}
    for layer in range(size.layers):
        for name, (out, inner) in linears(size).items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            shapes[f"{prefix}.lora_A.weight"] = (RANK, inner)
            shapes[f"{prefix}.lora_B.weight"] = (out, RANK)
    return shapes


def write_model(folder: Path, size: Size) -> None:
    """The base, in `size.shards` shards of about the same size, in bf16."""
    folder.mkdir(parents=True)
    shapes = base_shapes(size)
    total = sum(map(prod, shapes.values())) * 2
    block = _normal_block(0.02)
    halves = ((block.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(_parts(shapes, size.shards), start=1):
        file = f"model-{number:05}-of-{size.shards:05}.safetensors"
        _write_tensors(folder / file, part, "BF16", halves)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", _config(size))


def write_config(folder: Path, size: Size) -> None:
    """The config alone: a model of this shape can be made from it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config(size))


def write_adapter(folder: Path, size: Size) -> None:
    """The LoRA: r = 16 on all seven linears, in float32."""
    folder.mkdir(parents=True)
    _write_tensors(
        folder / "adapter_model.safetensors", adapter_shapes(size), "F32", _normal_block(0.01)
    )
    config = {
        "base_model_name_or_path": None,
        "bias": "none",
        "lora_alpha": ALPHA,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": sorted(name.rpartition(".")[2] for name in linears(size)),
        "task_type": "CAUSAL_LM",
    }
    _write_json(folder / "adapter_config.json", config)


def _normal_block(scale: float) -> NDArray[np.float32]:
    numbers = np.random.default_rng(7).standard_normal(BLOCK, dtype=np.float32)
    return numbers * np.float32(scale)


def _parts(shapes: Shapes, count: int) -> Iterator[Shapes]:
    """`shapes` in order, cut into `count` parts of about the same number of elements."""
    share = sum(map(prod, shapes.values())) / count
    part: Shapes = {}
    done, made = 0, 1
    for name, shape in shapes.items():
        if part and done >= made * share and made < count:
            yield part
            part, made = {}, made + 1
        part[name] = shape
        done += prod(shape)
    yield part


def _write_tensors(
    path: Path, shapes: Shapes, dtype: str, block: NDArray[np.uint16] | NDArray[np.float32]
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + prod(shape) * block.itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, shape in enumerate(shapes.values()):
            for piece in _cycled(block, prod(shape), start=number * 7919):
                file.write(piece.data)


def _cycled(
    block: NDArray[np.uint16] | NDArray[np.float32], count: int, *, start: int
) -> Iterator[NDArray[np.uint16] | NDArray[np.float32]]:
    position = start % len(block)
    while count:
        piece = block[position : position + count]
        yield piece
        count -= len(piece)
        position = 0


def _write_json(path: Path, body: Mapping[str, object]) -> None:
    path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(size: Size) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "max_position_embeddings": 4096,
        "model_type": "qwen2",
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "num_key_value_heads": size.key_heads,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": True,
        "vocab_size": size.vocabulary,
    }
