"""MLX-LM's names of modules, and what is refused because its model has no such module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import adaptool
import plain_adapters as plain
from adaptool.errors import InternalError, MismatchError
from adaptool.findings import Code
from adaptool.layouts import mlx_encode
from adaptool.model.adapter import Delta
from adaptool.names.mlx_names import MlxModule, mlx_module, mlx_type
from small_pairs import LLAMA, llama_base, save_base

QKV = "layers.0.self_attn.q_proj"
TEXT = f"language_model.model.{QKV}"


@pytest.mark.parametrize(
    ("kinds", "module", "path"),
    [
        (("llama",), f"model.{QKV}", f"model.{QKV}"),
        (("llama",), QKV, f"model.{QKV}"),
        (("mistral",), "lm_head", "lm_head"),
        (("qwen2_vl", "qwen2_vl_text"), f"model.{QKV}", TEXT),
        (("qwen2_5_vl",), f"model.language_model.{QKV}", TEXT),
        (("gemma3", "gemma3_text"), f"language_model.model.{QKV}", TEXT),
        (("llava", "llama"), "lm_head", "language_model.lm_head"),
        (("qwen2_vl",), "model.visual.blocks.0.attn.qkv", None),
        (("gemma3",), "model.vision_tower.encoder.layers.0.self_attn.q_proj", None),
        (("deepseek_v3",), "model.layers.0.self_attn.kv_b_proj", None),
        (("kimi_k2",), "model.layers.0.self_attn.kv_b_proj", None),
        (
            ("deepseek_v2",),
            "model.layers.0.self_attn.kv_b_proj",
            "model.layers.0.self_attn.kv_b_proj",
        ),
        (("gpt2",), "transformer.h.0.attn.c_attn", "model.h.0.attn.c_attn"),
        (("gpt_neox",), "gpt_neox.layers.1.mlp.dense_h_to_4h", "model.h.1.mlp.dense_h_to_4h"),
    ],
)
def test_module_has_the_name_that_its_model_has(
    kinds: tuple[str, ...], module: str, path: str | None
) -> None:
    """As `sanitize` of the model's file names it; None where the model lacks it."""
    found = mlx_module(mlx_type(kinds), module)
    assert found == (None if path is None else MlxModule(path))


@pytest.mark.parametrize(
    ("kind", "block", "name", "path"),
    [
        ("qwen3_moe", "mlp", "up_proj", "mlp.switch_mlp.up_proj"),
        ("mixtral", "mlp", "w1", "block_sparse_moe.switch_mlp.gate_proj"),
        ("phimoe", "mlp", "down_proj", "block_sparse_moe.switch_mlp.down_proj"),
        ("dots1", "mlp", "gate_proj", "mlp.experts.gate_proj"),
        ("llama4_text", "feed_forward", "down_proj", "feed_forward.experts.down_proj"),
        ("lfm2_moe", "feed_forward", "w3", "feed_forward.switch_mlp.up_proj"),
    ],
)
def test_expert_is_a_place_in_a_switch_layer(kind: str, block: str, name: str, path: str) -> None:
    """Which module holds the stack differs from model to model."""
    found = mlx_module(kind, f"model.layers.2.{block}.experts.3.{name}")
    assert found == MlxModule(f"model.layers.2.{path}", 3)


def test_inner_models_type_does_not_stand_for_the_whole_model() -> None:
    """MLX-LM has qwen2, and no model that wraps one under this name."""
    assert mlx_type(("llava_onevision", "qwen2")) is None


def _pair(tmp_path: Path, module: str, **config: Any) -> tuple[Path, Path]:
    save_base(tmp_path / "base", llama_base(), LLAMA | config, "bfloat16")
    return plain.write(tmp_path / "a", {module: (8, 8)}), tmp_path / "base"


@pytest.mark.parametrize(
    ("kind", "module", "word"),
    [
        ("deepseek_v3", "model.layers.0.self_attn.kv_b_proj", "has none of 1 modules"),
        ("bert", "bert.encoder.layer.0.attention.self.query", "no model of type bert"),
    ],
)
def test_what_the_model_lacks_is_refused_before_it_is_written(
    kind: str, module: str, word: str, tmp_path: Path
) -> None:
    """MLX-LM raises on a tensor that its model has no place for."""
    adapter, base = _pair(tmp_path, module, model_type=kind)
    with pytest.raises(MismatchError, match=word) as caught:
        adaptool.convert(adapter, tmp_path / "out", to="mlx", base=base)
    assert caught.value.code is Code.LAYOUT_CANNOT_HOLD
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoilt", ["scale", "keys", "names"])
def test_reader_sees_what_the_writer_does_wrong(
    spoilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale, a key or a name that is not the adapter's is never on disk."""
    adapter, base = _pair(tmp_path, f"model.{QKV}")
    config = mlx_encode._config  # noqa: SLF001 - the writer, to be spoilt

    def other(*given: Any) -> dict[str, Any]:
        made = config(*given)
        parameters = made["lora_parameters"]
        parameters["scale"] *= 2 if spoilt == "scale" else 1
        parameters["keys"] = [] if spoilt == "keys" else parameters["keys"]
        return made

    monkeypatch.setattr(mlx_encode, "_config", other)
    if spoilt == "names":
        monkeypatch.setattr(mlx_encode, "_named", lambda delta, _: _renamed(delta))
    with pytest.raises((InternalError, MismatchError)):
        adaptool.convert(adapter, tmp_path / "out", to="mlx", base=base)
    assert not (tmp_path / "out").exists()


def _renamed(delta: Delta) -> Delta:
    return replace(delta, module=delta.module.replace("q_proj", "k_proj"))
