"""LoRA adapters of a small decoder in PEFT's layout, and what their factors mean.

`deltas` is PEFT's own formula over the stored tensors, in float64 and without our code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize
from safetensors.numpy import load_file

from exact_numbers import drawn
from small_pairs import PREFIX, save, save_adapter

HIDDEN, INNER, VOCAB, HEADS, KEY_HEADS, EXPERTS = 32, 48, 64, 4, 2, 3
CONFIG = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
}
ATTENTION = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
}
MLP = {
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
Array = np.ndarray[Any, np.dtype[Any]]


def layered(inside: Mapping[str, tuple[int, int]], layers: int = 2) -> dict[str, tuple[int, int]]:
    """The modules of every layer with (out, in)."""
    return {
        f"model.layers.{layer}.{name}": shape
        for layer in range(layers)
        for name, shape in inside.items()
    }


def experts(name: str = "mlp.experts.{}.") -> dict[str, tuple[int, int]]:
    """The experts' projections of one layer, as Qwen calls them."""
    return {
        f"{name.format(place)}{leaf}": shape
        for place in range(EXPERTS)
        for leaf, shape in (
            ("gate_proj", (INNER, HIDDEN)),
            ("up_proj", (INNER, HIDDEN)),
            ("down_proj", (HIDDEN, INNER)),
        )
    }


def write(
    folder: Path,
    modules: Mapping[str, tuple[int, int]],
    *,
    rank: int = 4,
    config: Mapping[str, Any] | None = None,
    embedding: bool = False,
    magnitudes: bool = False,
    dtype: str = "float32",
) -> Path:
    """A PEFT directory with factors for each module; `config` may bring patterns."""
    body = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "use_dora": magnitudes}
    body |= {"target_modules": sorted({name.rpartition(".")[2] for name in modules})}
    body |= {"base_model_name_or_path": "someone/small", **(config or {})}
    tensors: dict[str, Array] = {}
    for place, (module, (out, inner)) in enumerate(modules.items()):
        own = _looked_up(body.get("rank_pattern", {}), module, rank)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = drawn(2 * place, own, inner)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = drawn(2 * place + 1, out, own)
        if magnitudes:
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = abs(drawn(place, out)) + 1
    if embedding:
        module = f"{PREFIX}model.embed_tokens"
        tensors[f"{module}.lora_embedding_A"] = drawn(901, rank, VOCAB)
        tensors[f"{module}.lora_embedding_B"] = drawn(902, HIDDEN, rank)
    if dtype == "float32":
        save_adapter(folder, tensors, body)
    else:
        folder.mkdir(parents=True)
        save(folder / "adapter_model.safetensors", tensors, dtype)
        (folder / "adapter_config.json").write_text(json.dumps(body))
    return folder


def _looked_up(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def deltas(folder: Path) -> dict[str, Array]:
    """Every module's update in float64, by PEFT's rules."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, a in tensors.items():
        if not key.endswith(("lora_A.weight", "lora_embedding_A")):
            continue
        kind = "lora_A.weight" if key.endswith("weight") else "lora_embedding_A"
        module = key.removeprefix(PREFIX).removesuffix(f".{kind}")
        b = tensors[key.removesuffix(kind) + kind.replace("_A", "_B")]
        alpha = _looked_up(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
        rank = _looked_up(config.get("rank_pattern") or {}, module, config["r"])
        assert rank == a.shape[0]
        scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        product = scaling * (b.astype("float64") @ a.astype("float64"))
        found[module] = product.T if "embedding" in kind else product
    return found


def stored(folder: Path) -> dict[str, object]:
    """Dtype, shape and bytes of every tensor of a PEFT directory."""
    content = (folder / "adapter_model.safetensors").read_bytes()
    return {
        name: (each["dtype"], each["shape"], bytes(each["data"]))
        for name, each in deserialize(content)
    }


def same(one: Mapping[str, Array], other: Mapping[str, Array], tolerance: float = 0.0) -> None:
    """Assert that two sets of updates are equal, up to a relative `tolerance`."""
    assert one.keys() == other.keys()
    for module, delta in one.items():
        error = np.linalg.norm(delta - other[module]) / np.linalg.norm(delta)
        assert error <= tolerance, (module, error)


def base(folder: Path, config: Mapping[str, Any] | None = None) -> Path:
    """A base with a config and one tensor: what `--base` needs."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    weight = {"model.embed_tokens.weight": drawn(5, VOCAB, HIDDEN)}
    save(folder / "model.safetensors", weight, "float32")
    return folder
