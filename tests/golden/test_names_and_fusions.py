"""Adapters whose module names are not the base's tensors: older names, fused and split modules.

PEFT cannot load most of these, so the truth is written out here in float64, index by index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import adaptool
import golden_cases
from golden_cases import BY_NAME, Tensors, save_base, tensors_of
from rounding import nearest
from tiny_models import build

RANK, ALPHA = 3, 5
SCALE = ALPHA / RANK
HEADS, HIDDEN = 4, 32
Deltas = dict[str, torch.Tensor]


def _base(model: str, where: Path) -> Tensors:
    save_base(build(model), where)
    return tensors_of(where)


class _Adapter:
    """Random factors by module, and the float64 delta each of them makes."""

    def __init__(self) -> None:
        torch.manual_seed(11)
        self.tensors: Tensors = {}

    def linear(self, module: str, out: int, inner: int) -> torch.Tensor:
        a, b = torch.randn(RANK, inner), torch.randn(out, RANK)
        self.tensors[f"base_model.model.{module}.lora_A.weight"] = a
        self.tensors[f"base_model.model.{module}.lora_B.weight"] = b
        return SCALE * b.double() @ a.double()

    def shift(self, module: str, out: int) -> torch.Tensor:
        bias = torch.randn(out)
        self.tensors[f"base_model.model.{module}.lora_B.bias"] = bias
        return SCALE * bias.double()

    def magnitude(self, module: str, weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """The change that DoRA makes of `weight` (out, in), whose delta is `delta`."""
        size = torch.rand(weight.shape[0]) + 0.5
        self.tensors[f"base_model.model.{module}.lora_magnitude_vector"] = size
        direction = weight.double() + delta
        gain = size.double() / direction.norm(dim=1)
        return gain[:, None] * direction - weight.double()

    def save(self, where: Path, **changes: object) -> Path:
        where.mkdir()
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "peft_version": "0.21.2"}
        (where / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        save_file(self.tensors, where / "adapter_model.safetensors")
        return where


def _check(base: Tensors, deltas: Deltas, out: Path) -> None:
    merged = tensors_of(out)
    assert set(merged) == set(base)
    for name, value in base.items():
        exact = value.double() + deltas.get(name, torch.zeros_like(value, dtype=torch.float64))
        assert torch.equal(merged[name], nearest(exact, value.dtype)), name


def test_separate_q_k_v_in_concatenated_qkv(tmp_path: Path) -> None:
    """phi3 keeps q, k and v in one tensor, one after the other; gate and up too."""
    base = _base("phi3", tmp_path / "base")
    adapter, deltas = _Adapter(), {}
    for layer in ("model.layers.0", "model.layers.1"):
        fused = torch.zeros(64, HIDDEN, dtype=torch.float64)
        fused[:32] = adapter.linear(f"{layer}.self_attn.q_proj", 32, HIDDEN)
        fused[48:] = adapter.linear(f"{layer}.self_attn.v_proj", 16, HIDDEN)
        both = torch.zeros(96, HIDDEN, dtype=torch.float64)
        both[:48] = adapter.linear(f"{layer}.mlp.gate_proj", 48, HIDDEN)
        both[48:] = adapter.linear(f"{layer}.mlp.up_proj", 48, HIDDEN)
        deltas |= {
            f"{layer}.self_attn.qkv_proj.weight": fused,
            f"{layer}.mlp.gate_up_proj.weight": both,
        }
    adaptool.merge(tmp_path / "base", adapter.save(tmp_path / "adapter"), tmp_path / "out")
    _check(base, deltas, tmp_path / "out")


def test_separate_q_k_v_in_qkv_that_interleaves_by_head(tmp_path: Path) -> None:
    """GPT-NeoX keeps q, k and v of a head together: weight (head, q/k/v, dim), bias alike."""
    base = _base("gpt_neox", tmp_path / "base")
    adapter, deltas = _Adapter(), {}
    for layer in ("gpt_neox.layers.0", "gpt_neox.layers.1"):
        fused = torch.zeros(HEADS, 3, HIDDEN // HEADS, HIDDEN, dtype=torch.float64)
        bias = torch.zeros(HEADS, 3, HIDDEN // HEADS, dtype=torch.float64)
        for place, member in enumerate(("q_proj", "k_proj", "v_proj")):
            module = f"{layer}.attention.{member}"
            delta = adapter.linear(module, HIDDEN, HIDDEN)
            fused[:, place] = delta.reshape(HEADS, HIDDEN // HEADS, HIDDEN)
            bias[:, place] = adapter.shift(module, HIDDEN).reshape(HEADS, HIDDEN // HEADS)
        module = f"{layer}.attention.query_key_value"
        deltas |= {
            f"{module}.weight": fused.reshape(3 * HIDDEN, HIDDEN),
            f"{module}.bias": bias.reshape(3 * HIDDEN),
        }
    where = adapter.save(tmp_path / "adapter", lora_bias=True)
    adaptool.merge(tmp_path / "base", where, tmp_path / "out")
    _check(base, deltas, tmp_path / "out")


def test_separate_q_k_v_in_transposed_qkv(tmp_path: Path) -> None:
    """GPT-2 keeps c_attn as (in, 3 out): the members are columns."""
    base = _base("gpt2", tmp_path / "base")
    adapter = _Adapter()
    fused = torch.zeros(HIDDEN, 3 * HIDDEN, dtype=torch.float64)
    fused[:, 32:64] = adapter.linear("transformer.h.1.attn.k_proj", HIDDEN, HIDDEN).T
    fused[:, 64:] = adapter.linear("transformer.h.1.attn.v_proj", HIDDEN, HIDDEN).T
    adaptool.merge(tmp_path / "base", adapter.save(tmp_path / "adapter"), tmp_path / "out")
    _check(base, {"transformer.h.1.attn.c_attn.weight": fused}, tmp_path / "out")


@pytest.mark.parametrize("fused", ["qkv_proj", "W_pack"])
def test_fused_qkv_onto_separate_projections(tmp_path: Path, fused: str) -> None:
    """A llama base has q, k and v apart: 32, 16 and 16 rows of the fused delta; gate and up too."""
    base = _base("llama", tmp_path / "base")
    adapter = _Adapter()
    layer = "model.layers.0"
    delta = adapter.linear(f"{layer}.self_attn.{fused}", 64, HIDDEN)
    both = adapter.linear(f"{layer}.mlp.gate_up_proj", 96, HIDDEN)
    deltas = {
        f"{layer}.self_attn.q_proj.weight": delta[:32],
        f"{layer}.self_attn.k_proj.weight": delta[32:48],
        f"{layer}.self_attn.v_proj.weight": delta[48:],
        f"{layer}.mlp.gate_proj.weight": both[:48],
        f"{layer}.mlp.up_proj.weight": both[48:],
    }
    adaptool.merge(tmp_path / "base", adapter.save(tmp_path / "adapter"), tmp_path / "out")
    _check(base, deltas, tmp_path / "out")


def test_dora_of_a_part_renormalises_that_part(tmp_path: Path) -> None:
    """Norms run over the member's own rows in phi3's qkv, over its columns in GPT-2's c_attn."""
    base = _base("phi3", tmp_path / "base")
    adapter = _Adapter()
    module, fused = "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.qkv_proj.weight"
    change = torch.zeros(64, HIDDEN, dtype=torch.float64)
    delta = adapter.linear(module, 16, HIDDEN)
    change[32:48] = adapter.magnitude(module, base[fused][32:48], delta)
    where = adapter.save(tmp_path / "adapter", use_dora=True)
    adaptool.merge(tmp_path / "base", where, tmp_path / "out")
    _check(base, {fused: change}, tmp_path / "out")


def test_dora_of_a_part_renormalises_columns_of_a_transposed_weight(tmp_path: Path) -> None:
    """GPT-2's k is the middle third of c_attn's columns."""
    base = _base("gpt2", tmp_path / "base")
    adapter = _Adapter()
    module, fused = "transformer.h.0.attn.k_proj", "transformer.h.0.attn.c_attn.weight"
    change = torch.zeros(HIDDEN, 3 * HIDDEN, dtype=torch.float64)
    delta = adapter.linear(module, HIDDEN, HIDDEN)
    change[:, 32:64] = adapter.magnitude(module, base[fused][:, 32:64].T, delta).T
    where = adapter.save(tmp_path / "adapter", use_dora=True)
    adaptool.merge(tmp_path / "base", where, tmp_path / "out")
    _check(base, {fused: change}, tmp_path / "out")


def test_fused_dora_onto_separate_projections(tmp_path: Path) -> None:
    """Rows are renormalised one by one, so a fused DoRA can be cut."""
    base = _base("llama", tmp_path / "base")
    adapter = _Adapter()
    module = "model.layers.1.self_attn.qkv_proj"
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    weight = torch.cat([base[name] for name in names])
    change = adapter.magnitude(module, weight, adapter.linear(module, 64, HIDDEN))
    where = adapter.save(tmp_path / "adapter", use_dora=True)
    adaptool.merge(tmp_path / "base", where, tmp_path / "out")
    deltas = dict(zip(names, change.split([32, 16, 16]), strict=True))
    _check(base, deltas, tmp_path / "out")


def test_experts_of_transformers_4_names_onto_the_same_names(tmp_path: Path) -> None:
    """Mixtral's checkpoint keeps the names that adapters of transformers 4 carry."""
    base = _base("mixtral", tmp_path / "base")
    adapter, deltas = _Adapter(), {}
    moe = "model.layers.1.block_sparse_moe"
    for module in (f"{moe}.experts.0.w1", f"{moe}.experts.2.w2", f"{moe}.gate"):
        deltas[f"{module}.weight"] = adapter.linear(module, *base[f"{module}.weight"].shape)
    adaptool.merge(tmp_path / "base", adapter.save(tmp_path / "adapter"), tmp_path / "out")
    _check(base, deltas, tmp_path / "out")


def test_single_experts_in_a_stack(tmp_path: Path) -> None:
    """A checkpoint saved stacked takes adapters of single experts: gate above up, one by one."""
    tensors = _base("qwen3_moe", tmp_path / "split")
    experts = "model.layers.0.mlp.experts"
    for name in [name for name in tensors if name.startswith(experts)]:
        del tensors[name]
    torch.manual_seed(2)
    tensors[f"{experts}.gate_up_proj"] = torch.randn(3, 48, HIDDEN)
    tensors[f"{experts}.down_proj"] = torch.randn(3, HIDDEN, 24)
    base = tmp_path / "base"
    base.mkdir()
    save_file(tensors, base / "model.safetensors")
    (base / "config.json").write_bytes((tmp_path / "split" / "config.json").read_bytes())
    adapter = _Adapter()
    both = torch.zeros(3, 48, HIDDEN, dtype=torch.float64)
    both[1, 24:] = adapter.linear(f"{experts}.1.up_proj", 24, HIDDEN)
    both[2, :24] = adapter.linear(f"{experts}.2.gate_proj", 24, HIDDEN)
    down = torch.zeros(3, HIDDEN, 24, dtype=torch.float64)
    down[0] = adapter.linear(f"{experts}.0.down_proj", HIDDEN, 24)
    adaptool.merge(base, adapter.save(tmp_path / "adapter"), tmp_path / "out")
    deltas = {f"{experts}.gate_up_proj": both, f"{experts}.down_proj": down}
    _check(tensors, deltas, tmp_path / "out")


def _renamed(source: Path, out: Path, rename: Callable[[str], str]) -> Path:
    """The adapter with its keys renamed, and target_modules as an expression that takes all."""
    out.mkdir()
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(
        {rename(name): value for name, value in tensors.items()}, out / "adapter_model.safetensors"
    )
    config = json.loads((source / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ".*"}))
    return out


def _replacing(table: Mapping[str, str]) -> Callable[[str], str]:
    def rename(name: str) -> str:
        for old, new in table.items():
            name = name.replace(old, new)
        return name

    return rename


OLDER_NAMES = {
    "vit": {
        "vit.layers": "vit.encoder.layer",
        "attention.q_proj": "attention.attention.query",
        "attention.v_proj": "attention.attention.value",
        "mlp.fc1": "intermediate.dense",
    },
    "llava": {
        "model.language_model.layers": "language_model.model.layers",
        "model.vision_tower": "vision_tower",
        "model.multi_modal_projector": "multi_modal_projector",
    },
    "plain": {"base_model.model.model.": "base_model.model."},
    "bert": {"base_model.model.bert.": "base_model.model."},
    "gpt2": {"base_model.model.transformer.": "base_model.model."},
}


@pytest.mark.parametrize("name", OLDER_NAMES)
def test_older_names_give_the_same_bytes(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An adapter of transformers 4, or of the bare base model, merges as the one of today."""
    made = golden_cases.make(BY_NAME[name], tmp_path_factory.getbasetemp())
    rename = _replacing(OLDER_NAMES[name])
    older = _renamed(made.adapter, tmp_path / "older", rename)
    assert set(load_file(older / "adapter_model.safetensors")) != set(
        load_file(made.adapter / "adapter_model.safetensors")
    )
    adaptool.merge(made.base, made.adapter, tmp_path / "today")
    adaptool.merge(made.base, older, tmp_path / "out")
    today, ours = tensors_of(tmp_path / "today"), tensors_of(tmp_path / "out")
    assert {key: torch.equal(value, ours[key]) for key, value in today.items()} == dict.fromkeys(
        today, True
    )


@pytest.mark.parametrize(
    ("version", "model", "expected"),
    [
        ("0.18.1", "mixtral_square", "eio"),
        (None, "gpt_oss_square", "eio"),
        ("0.19.0", "mixtral_square", "eio"),
        ("0.19.0", "gpt_oss_square", "eoi"),
        ("0.19.1", "mixtral_square", "eoi"),
        ("0.21.2", "gpt_oss_square", "eio"),
    ],
)
def test_square_experts_follow_the_version_that_trained_them(
    tmp_path: Path, version: str | None, model: str, expected: str
) -> None:
    """PEFT 0.17 and 0.18 read every stack as (E, in, out); 0.19.0 swapped just the wrong ones.

    From its source: `update_layer` and `get_delta_weight` of ParamWrapper, 0.17.1, 0.18.1, 0.19.0.
    """
    base = _base(model, tmp_path / "base")
    parameter = "gate_up_proj" if model == "mixtral_square" else "down_proj"
    torch.manual_seed(4)
    a, b = torch.randn(3 * RANK, HIDDEN), torch.randn(HIDDEN, RANK * 3)
    delta = SCALE * torch.einsum(
        f"ore,eri->{expected}",
        b.double().reshape(HIDDEN, RANK, 3),
        a.double().reshape(3, RANK, HIDDEN),
    )
    adapter = _Adapter()
    prefix = "base_model.model.model.layers.0.mlp.experts"
    adapter.tensors = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    where = adapter.save(
        tmp_path / "adapter",
        target_parameters=[f"experts.{parameter}"],
        target_modules=[],
        peft_version=version,
    )
    adaptool.merge(tmp_path / "base", where, tmp_path / "out")
    if model == "gpt_oss_square":
        deltas = {"model.layers.0.mlp.experts.down_proj": delta}
    else:
        moe = "model.layers.0.block_sparse_moe.experts"
        halves = {"w1": slice(0, 16), "w3": slice(16, 32)}
        deltas = {
            f"{moe}.{expert}.{half}.weight": delta[expert, rows]
            for expert in range(3)
            for half, rows in halves.items()
        }
    _check(base, deltas, tmp_path / "out")
