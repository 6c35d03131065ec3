"""Older and bare files, against the formulas of the libraries that wrote them.

loralib 0.1.2: `MergedLinear.merge_AB`; PEFT 0.2.0: the same over a kernel; LitGPT 0.5.13:
`LoRAQKVLinear.conv1d`; torchtune 0.6.1: `hf_to_tune` for the order of rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional

import adaptool
import plain_adapters as plain
from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from exact_numbers import drawn
from small_pairs import PREFIX

Array = np.ndarray[Any, np.dtype[Any]]
ALPHA, RANK = 6.0, 3


def _saved(path: Path, tensors: Mapping[str, Array]) -> Path:
    save_file({name: np.ascontiguousarray(each) for name, each in tensors.items()}, path)
    return path


def _read(path: Path, out: Path, **options: Any) -> dict[str, Array]:
    """Every module's update after conversion to PEFT."""
    adaptool.convert(path, out, to="peft", **options)
    return plain.deltas(out)


def _grouped(a: Array, b: Array, groups: int) -> Array:
    """The product of loralib's grouped convolution, (k out / n, in)."""
    found = functional.conv1d(
        torch.from_numpy(a)[None].double(), torch.from_numpy(b)[..., None].double(), groups=groups
    )
    return found[0].numpy()


def _zero_padded(update: Array, enabled: list[bool]) -> Array:
    """loralib's zero_pad: the trained parts' rows at their places."""
    size = len(update) // sum(enabled)
    whole = np.zeros((size * len(enabled), update.shape[1]))
    whole[np.repeat(enabled, size)] = update
    return whole


def test_bare_factors_of_loralib_need_an_alpha(tmp_path: Path) -> None:
    """A real file has `...query.lora_A` (8, 768) and nothing of the scale."""
    name = "roberta.encoder.layer.0.attention.self.query"
    a, b = drawn(1, RANK, 8), drawn(2, 10, RANK)
    path = _saved(tmp_path / "x.safetensors", {f"{name}.lora_A": a, f"{name}.lora_B": b})
    with pytest.raises(InputError) as caught:
        adaptool.convert(path, tmp_path / "out", to="peft")
    assert caught.value.code is Code.CONFIG_MISSING
    found = _read(path, tmp_path / "out", alpha=ALPHA)
    plain.same(found, {name: ALPHA / RANK * (b.astype("float64") @ a)})


@pytest.mark.parametrize("enabled", [[True, False, True], [True, True, True]])
def test_a_merged_linear_is_its_grouped_convolution(tmp_path: Path, enabled: list[bool]) -> None:
    """q and v, or q, k and v, of GPT-2's c_attn."""
    count, name = sum(enabled), "transformer.h.0.attn.c_attn"
    a, b = drawn(1, count * RANK, 8), drawn(2, count * 5, RANK)
    path = _saved(tmp_path / "x.safetensors", {f"{name}.lora_A": a, f"{name}.lora_B": b})
    found = _read(path, tmp_path / "out", alpha=ALPHA)
    wanted = ALPHA / RANK * _zero_padded(_grouped(a, b, count), enabled)
    plain.same(found, {name: wanted}, 1e-15)
    notes = [
        each.code
        for each in adaptool.convert(path, tmp_path / "two", to="peft", alpha=1.0).findings
    ]
    assert (Code.SHAPE_AMBIGUOUS in notes) == (count == 2)


def test_loralibs_embedding_and_biases(tmp_path: Path) -> None:
    """(r, vocab) and (dim, r); a trained bias and a head are carried."""
    tensors = {
        "model.embed_tokens.lora_A": drawn(1, RANK, 9),
        "model.embed_tokens.lora_B": drawn(2, 4, RANK),
        "model.fc.bias": drawn(3, 4),
        "classifier.weight": drawn(4, 2, 4),
    }
    path = _saved(tmp_path / "x.safetensors", tensors)
    done = adaptool.convert(path, tmp_path / "out", to="peft", alpha=ALPHA)
    assert set(done.carried) == {"model.fc.bias", "classifier.weight"}
    update = (
        tensors["model.embed_tokens.lora_B"].astype("float64")
        @ tensors["model.embed_tokens.lora_A"]
    ).T
    plain.same(plain.deltas(tmp_path / "out"), {"model.embed_tokens": ALPHA / RANK * update})


@pytest.mark.parametrize("enabled", [[True, False, True], [True, True, False], [True, True, True]])
def test_early_peft_kept_a_kernel(tmp_path: Path, enabled: list[bool]) -> None:
    """A BLOOM adapter of 2023: A (k r, in), B (out, r, 1), `enable_lora` in the config."""
    count, name = sum(enabled), "transformer.h.0.self_attention.query_key_value"
    a, b = drawn(1, count * RANK, 8), drawn(2, count * 5, RANK, 1)
    folder = tmp_path / "a"
    folder.mkdir()
    _saved(
        folder / "adapter_model.safetensors",
        {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b},
    )
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "enable_lora": enabled}
    config |= {"target_modules": ["query_key_value"], "merge_weights": False, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    found = _read(folder, tmp_path / "out", as_="lora")
    wanted = ALPHA / RANK * _zero_padded(_grouped(a, b[..., 0], count), enabled)
    plain.same(found, {name: wanted}, 1e-6)


def test_adapter_names_inside_keys_are_read(tmp_path: Path) -> None:
    """`lora_A.default.weight`, as dumped from a model in memory."""
    peft = plain.write(tmp_path / "a", plain.layered(plain.ATTENTION))
    weights = peft / "adapter_model.safetensors"
    before = plain.deltas(peft)
    named = {
        key.replace(".weight", ".default.weight"): each for key, each in load_file(weights).items()
    }
    _saved(weights, named)
    plain.same(_read(peft, tmp_path / "b"), before)


@pytest.mark.parametrize("ending", ["{}.weight", "lora_{}.weight", "lora_{}.default.weight"])
def test_pairs_without_a_prefix(tmp_path: Path, ending: str) -> None:
    """Hand-written training loops save what they have."""
    name = "model.layers.0.mlp.up_proj"
    a, b = drawn(1, RANK, 8), drawn(2, 10, RANK)
    tensors = {f"{name}.{ending.format('A')}": a, f"{name}.{ending.format('B')}": b}
    path = _saved(tmp_path / "x.safetensors", tensors)
    found = _read(path, tmp_path / "out", scale=0.5)
    plain.same(found, {name: 0.5 * (b.astype("float64") @ a)})


def _base(folder: Path, model_type: str) -> Path:
    return plain.base(folder, {"model_type": model_type})


def _turned(update: Array, heads: int) -> Array:
    """torchtune's `_permute` of hf_to_tune, over a weight."""
    dim = update.shape[1]
    found = torch.from_numpy(update).view(heads, 2, len(update) // heads // 2, dim)
    return found.transpose(1, 2).reshape(len(update), dim).numpy()


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen2"])
def test_torchtunes_rows_are_turned_back(tmp_path: Path, model_type: str) -> None:
    """Meta's names, Meta's order where the family has it; the base's config says."""
    tensors = {
        "layers.1.attn.q_proj.lora_a.weight": drawn(1, RANK, 8),
        "layers.1.attn.q_proj.lora_b.weight": drawn(2, 32, RANK),
        "layers.1.attn.k_proj.lora_a.weight": drawn(3, RANK, 8),
        "layers.1.attn.k_proj.lora_b.weight": drawn(4, 16, RANK),
        "layers.1.mlp.w3.lora_a.weight": drawn(5, RANK, 8),
        "layers.1.mlp.w3.lora_b.weight": drawn(6, 12, RANK),
        "output.lora_a.weight": drawn(7, RANK, 8),
        "output.lora_b.weight": drawn(8, 20, RANK),
    }
    path = _saved(tmp_path / "x.safetensors", tensors)
    with pytest.raises(MismatchError):
        adaptool.convert(path, tmp_path / "out", to="peft", alpha=ALPHA)
    base = _base(tmp_path / "base", model_type)
    found = _read(path, tmp_path / "out", alpha=ALPHA, base=base)
    names = {"self_attn.q_proj": "attn.q_proj", "self_attn.k_proj": "attn.k_proj"}
    names |= {"mlp.up_proj": "mlp.w3"}
    modules = {f"model.layers.1.{here}": f"layers.1.{there}" for here, there in names.items()}
    for module, there in {**modules, "lm_head": "output"}.items():
        a, b = (tensors[f"{there}.lora_{x}.weight"].astype("float64") for x in "ab")
        update = found.pop(module)
        heads = {"q_proj": plain.HEADS, "k_proj": plain.KEY_HEADS}.get(module.rpartition(".")[2])
        if heads is not None and model_type != "qwen2":
            update = _turned(update, heads)
        assert np.array_equal(update, ALPHA / RANK * (b @ a))
    assert not found


@pytest.mark.parametrize("parts", ["q", "qv", "qkv"])
def test_litgpts_fused_projections_come_apart(tmp_path: Path, parts: str) -> None:
    """Each projection has its own rows of A and of B."""
    rows = {"q": 32, "k": 16, "v": 16}
    name, sizes = "transformer.h.0.attn.qkv", [rows[part] for part in parts]
    a, b = drawn(1, len(parts) * RANK, 8), drawn(2, sum(sizes), RANK)
    tensors = {f"{name}.lora_A": a, f"{name}.lora_B": b}
    tensors |= {"transformer.h.0.mlp.fc_2.lora_A": drawn(3, RANK, 8)}
    tensors |= {"transformer.h.0.mlp.fc_2.lora_B": drawn(4, 12, RANK)}
    path = _saved(tmp_path / "x.safetensors", tensors)
    found = _read(path, tmp_path / "out", alpha=ALPHA, base=_base(tmp_path / "base", "llama"))
    pieces = zip(np.split(a, len(parts)), np.split(b, np.cumsum(sizes)[:-1]), parts, strict=True)
    wanted = {
        f"model.layers.0.self_attn.{part}_proj": ALPHA / RANK * (each.astype("float64") @ first)
        for first, each, part in pieces
    }
    up = (
        tensors["transformer.h.0.mlp.fc_2.lora_B"].astype("float64")
        @ tensors["transformer.h.0.mlp.fc_2.lora_A"]
    )
    wanted["model.layers.0.mlp.up_proj"] = ALPHA / RANK * up
    plain.same(found, wanted, 1e-15)


def test_litgpts_fused_projections_need_the_heads(tmp_path: Path) -> None:
    """Without them nobody knows where q ends."""
    name = "transformer.h.0.attn.qkv"
    tensors = {f"{name}.lora_A": drawn(1, 9, 8), f"{name}.lora_B": drawn(2, 64, 3)}
    path = _saved(tmp_path / "x.safetensors", tensors)
    with pytest.raises(MismatchError) as caught:
        adaptool.convert(path, tmp_path / "out", to="peft", alpha=ALPHA)
    assert "--base" in str(caught.value.hint)


def test_a_config_beside_says_the_scale(tmp_path: Path) -> None:
    """torchtune and others leave an adapter_config.json there."""
    name = "model.layers.0.mlp.up_proj"
    a, b = drawn(1, RANK, 8), drawn(2, 10, RANK)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"alpha": 12}))
    path = _saved(tmp_path / "x.safetensors", {f"{name}.A.weight": a, f"{name}.B.weight": b})
    assert adaptool.inspect(path).scaling == {"min": 4.0, "max": 4.0}


@pytest.mark.parametrize("role", ["A", "B"])
def test_a_lone_factor_is_named(tmp_path: Path, role: str) -> None:
    """Whatever the layout, half a pair is no adapter."""
    path = _saved(
        tmp_path / "x.safetensors", {f"model.layers.0.mlp.up_proj.{role}.weight": drawn(1, 3, 3)}
    )
    with pytest.raises(InputError) as caught:
        adaptool.convert(path, tmp_path / "out", to="peft", alpha=1.0)
    assert caught.value.code is Code.FACTOR_MISSING


def test_litgpts_pickle_is_a_wrapped_state_dict(tmp_path: Path) -> None:
    """`lit_model.pth.lora` holds `{"model": ...}`; --allow-pickle reads it."""
    name = "transformer.h.0.mlp.proj"
    a, b = drawn(1, RANK, 8), drawn(2, 10, RANK)
    tensors = {f"{name}.lora_A": torch.from_numpy(a), f"{name}.lora_B": torch.from_numpy(b)}
    torch.save({"model": tensors}, tmp_path / "lit_model.pth.lora")
    path = tmp_path / "lit_model.pth.lora"
    found = _read(path, tmp_path / "out", alpha=ALPHA, allow_pickle=True)
    wanted = ALPHA / RANK * (b.astype("float64") @ a)
    plain.same(found, {"model.layers.0.mlp.down_proj": wanted})


def test_peft_rules_hold_where_pefts_config_lies_beside(tmp_path: Path) -> None:
    """Only the prefix is missing: rsLoRA and patterns count all the same."""
    config = {"use_rslora": True, "alpha_pattern": {"v_proj": 3}}
    peft = plain.write(tmp_path / "a", plain.layered(plain.ATTENTION), config=config)
    weights = peft / "adapter_model.safetensors"
    wanted = plain.deltas(peft)
    _saved(weights, {key.removeprefix(PREFIX): each for key, each in load_file(weights).items()})
    plain.same(_read(peft, tmp_path / "b"), wanted, 1e-15)


def test_loralibs_convolution_is_its_product_seen_as_a_kernel(tmp_path: Path) -> None:
    """ConvLoRA: (B @ A).view(weight.shape) * alpha / r; the base's shape tells it is one."""
    out, inner, side = 5, 4, 3
    a, b = drawn(1, RANK * side, inner * side), drawn(2, out * side, RANK * side)
    path = _saved(tmp_path / "x.safetensors", {"net.conv.lora_A": a, "net.conv.lora_B": b})
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    weight = drawn(3, out, inner, side, side)
    _saved(base / "model.safetensors", {"net.conv.weight": weight})
    adaptool.convert(path, tmp_path / "out", to="peft", alpha=ALPHA, base=base)
    adaptool.merge(base, tmp_path / "out", tmp_path / "merged")
    update = (b.astype("float64") @ a).reshape(weight.shape) * ALPHA / RANK
    merged = load_file(tmp_path / "merged" / "model.safetensors")["net.conv.weight"]
    assert np.array_equal(merged, (weight + update).astype("float32"))
