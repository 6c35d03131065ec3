"""Factors of any shape and config: a layout reads them or refuses them, and never breaks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import gguf_files
import plain_adapters as plain
from adaptool.errors import AdaptoolError, InternalError
from adaptool.layouts import decode, writable
from adaptool.model.encoding import Destination
from adaptool.model.reading import BaseNames, Reading
from adaptool.store.adapter_files import open_adapter

READING = Reading(base=BaseNames({}, plain.CONFIG), alpha=4.0)
KEYS = {
    "mlx": (
        "model.layers.0.self_attn.q_proj.lora_a",
        "model.layers.0.self_attn.q_proj.lora_b",
        "model.layers.0.self_attn.q_proj.m",
        "model.layers.0.mlp.switch_mlp.up_proj.lora_a",
        "model.layers.0.mlp.switch_mlp.up_proj.lora_b",
        "model.embed_tokens.lora_a",
        "model.embed_tokens.lora_b",
    ),
    "loralib": ("a.lora_A", "a.lora_B", "a.bias"),
    "litgpt": ("transformer.h.0.attn.qkv.lora_A", "transformer.h.0.attn.qkv.lora_B"),
    "torchtune": (
        "layers.0.attn.q_proj.lora_a.weight",
        "layers.0.attn.q_proj.lora_b.weight",
        "layers.0.attn.q_proj.magnitude",
    ),
    "bare": ("x.A.weight", "x.B.weight"),
    "cloneofsimo": ("unet:0:up", "unet:0:down", "text_encoder:0:up", "text_encoder:0:down"),
    "early peft": ("base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight"),
    "gguf": (
        "blk.0.attn_q.weight.lora_a",
        "blk.0.attn_q.weight.lora_b",
        "blk.0.ffn_up_exps.weight.lora_a",
        "blk.0.ffn_up_exps.weight.lora_b",
        "token_embd.weight.lora_a",
        "token_embd.weight.lora_b",
    ),
}
CONFIGS = (
    {},
    {"lora_parameters": {"scale": 2.0, "rank": 2}},
    {"lora_parameters": 3},
    {"alpha": "x"},
    {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "enable_lora": [True, False]},
    {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "enable_lora": "x"},
)
SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=4)
SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8]), max_size=4)


@pytest.mark.parametrize("layout", KEYS)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_shape_breaks_a_layout(layout: str, tmp_path: Path, data: st.DataObject) -> None:
    """What is decoded can be written in every layout that says it holds it, or is refused."""
    names = data.draw(st.lists(st.sampled_from(KEYS[layout]), min_size=1, unique=True))
    shapes = SHAPES if layout == "gguf" else SIZES
    tensors = {name: np.ones(data.draw(shapes), "float32") for name in names}
    config = data.draw(st.sampled_from(CONFIGS))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    path = tmp_path / "x.bin"
    if layout == "gguf":
        gguf_files.write(path, tensors)
    else:
        save_file(tensors, path)
    try:
        with open_adapter(path) as files:
            adapter = decode(files, READING)
            for target in writable().values():
                if not target.losses(adapter):
                    target.encode(adapter, Destination(base=READING.base))
    except InternalError:
        raise
    except AdaptoolError:
        return
