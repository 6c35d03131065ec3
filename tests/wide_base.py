"""A base in six shards of 8 MB and an adapter for it: large enough to see which are on a disk."""

from __future__ import annotations

import json
from pathlib import Path

from small_pairs import LLAMA, Pair, config_of, drawn, lora, save, save_adapter

SHARDS = 6
WIDTH = 2048
SHARD_BYTES = 2 * WIDTH * WIDTH


def write_wide(folder: Path) -> Pair:
    """`folder`/base, one bfloat16 matrix of 2048 x 2048 a shard, and `folder`/adapter."""
    pair = Pair(folder / "base", folder / "adapter")
    pair.base.mkdir()
    weight_map = {}
    factors = {}
    one = drawn(7, WIDTH, WIDTH)
    for place in range(SHARDS):
        module = f"model.layers.{place}.self_attn.o_proj"
        file = f"model-{place + 1:05d}-of-{SHARDS:05d}.safetensors"
        save(pair.base / file, {f"{module}.weight": one + place}, "bfloat16")
        weight_map[f"{module}.weight"] = file
        factors |= lora(module, WIDTH, WIDTH, seed=place, rank=2)
    index = {"metadata": {"total_size": SHARDS * SHARD_BYTES}, "weight_map": weight_map}
    config = {**LLAMA, "hidden_size": WIDTH, "num_hidden_layers": SHARDS, "dtype": "bfloat16"}
    (pair.base / "model.safetensors.index.json").write_text(json.dumps(index))
    (pair.base / "config.json").write_text(json.dumps(config))
    (pair.base / "tokenizer.json").write_text('{"version": "1.0"}')
    (pair.base / "LICENSE").write_text("Do as you like.\n")
    (pair.base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    save_adapter(pair.adapter, factors, config_of(r=2, target_modules=["o_proj"]))
    return pair
