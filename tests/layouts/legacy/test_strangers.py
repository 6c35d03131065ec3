"""Kinds of adapters that are recognised and not read: each says what it is and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import adaptool
from adaptool.errors import InputError, MismatchError
from exact_numbers import drawn
from small_pairs import PREFIX

Array = np.ndarray[Any, np.dtype[Any]]
_LAYER = "model.layers.0"
KEYS: Mapping[str, dict[str, Array]] = {
    "Tinker archive: the experts": {
        f"{PREFIX}{_LAYER}.mlp.experts.w1.lora_A.weight": drawn(1, 4, 2, 8),
        f"{PREFIX}{_LAYER}.mlp.experts.w1.lora_B.weight": drawn(2, 4, 8, 2),
    },
    "Tinker archive: its head": {
        f"{PREFIX}model.unembed_tokens.lora_A.weight": drawn(1, 2, 8),
        f"{PREFIX}model.unembed_tokens.lora_B.weight": drawn(2, 8, 2),
    },
    "NeMo or Megatron": {
        "decoder.layers.0.self_attention.linear_qkv.adapter.linear_in.weight": drawn(1, 2, 8),
        "decoder.layers.0.self_attention.linear_qkv.adapter.linear_out.weight": drawn(2, 8, 2),
    },
    "interleaved": {
        "decoder.layers.0.mlp.linear_fc1.adapter.adapter_gate.linear_in.weight": drawn(1, 2, 8),
    },
    "AdapterHub": {
        "roberta.encoder.layer.0.attention.self.query.loras.mine.lora_A": drawn(1, 2, 8),
        "roberta.encoder.layer.0.attention.self.query.loras.mine.lora_B": drawn(2, 8, 2),
    },
}


@pytest.mark.parametrize("what", KEYS)
def test_known_keys_of_strangers_are_named(tmp_path: Path, what: str) -> None:
    """Exit 4, the kind of file, the tensor that shows it, and a way on."""
    path = tmp_path / "x.safetensors"
    save_file(KEYS[what], path)
    with pytest.raises(MismatchError, match=what) as caught:
        adaptool.convert(path, tmp_path / "out", to="peft", alpha=1.0)
    assert caught.value.hint
    assert caught.value.tensor in KEYS[what]


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("adapter_weights.bin", "fmadapter"),
        ("pytorch_adapter.bin", "AdapterHub"),
        ("__0_0.distcp", "Megatron"),
        ("adapters.npz", "NumPy"),
    ],
)
def test_packages_of_strangers_are_named(tmp_path: Path, file: str, what: str) -> None:
    """By the file that only they hold."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / file).write_bytes(b"something")
    (tmp_path / "package" / "metadata.json").write_text("{}")
    for act in (adaptool.inspect, lambda path: adaptool.convert(path, tmp_path / "o", to="peft")):
        with pytest.raises(MismatchError, match=what) as caught:
            act(tmp_path / "package")
        assert caught.value.hint


def test_an_onnx_adapter_is_named(tmp_path: Path) -> None:
    """By the identifier of its flatbuffer."""
    path = tmp_path / "x.onnx_adapter"
    path.write_bytes(b"\x1c\x00\x00\x00TORT" + bytes(64))
    with pytest.raises(InputError, match="onnx_adapter") as caught:
        adaptool.inspect(path)
    assert caught.value.hint
