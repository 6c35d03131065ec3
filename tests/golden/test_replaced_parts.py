"""Tensors that an adapter brings whole, for a base that keeps them fused, or in pieces.

PEFT cannot load such a pair, so the truth is written out here in float64, row by row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adaptool import merge, unmerge
from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.options import Strength
from golden_cases import Tensors, save_base, tensors_of
from rounding import nearest
from tiny_models import build
from unmerging import lost

PREFIX = "base_model.model."
RANK, ALPHA = 3, 5
HIDDEN, HEADS = 32, 4
LAYER = "model.layers.0.self_attn"


def base_of(model: str, folder: Path) -> Tensors:
    """A tiny model of this family."""
    save_base(build(model), folder)
    return tensors_of(folder)


def adapter_of(folder: Path, tensors: Mapping[str, torch.Tensor], **config: object) -> Path:
    """A LoRA adapter that brings these tensors, by their names in the model."""
    folder.mkdir()
    body = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "peft_version": "0.21.2"}
    (folder / "adapter_config.json").write_text(json.dumps({**body, **config}))
    named = {f"{PREFIX}{name}": value for name, value in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Normal numbers in float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(module: str, out: int, inner: int) -> tuple[Tensors, torch.Tensor]:
    """LoRA's factors, and their delta in float64."""
    a, b = drawn(1, RANK, inner), drawn(2, out, RANK)
    named = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    return named, ALPHA / RANK * b.double() @ a.double()


def check(base: Tensors, changed: Tensors, out: Path) -> None:
    """Every tensor is the base's, but for these values in float64, rounded once."""
    merged = tensors_of(out)
    assert merged.keys() == base.keys()
    for name, value in base.items():
        expected = changed.get(name, value.double())
        assert torch.equal(merged[name], nearest(expected, value.dtype)), name


def test_saved_q_takes_its_rows_of_a_fused_qkv(tmp_path: Path) -> None:
    """phi3's qkv has 32 rows of q, 16 of k, 16 of v; a LoRA on v stands in the same tensor."""
    base = base_of("phi3", tmp_path / "base")
    value = drawn(3, HIDDEN, HIDDEN)
    value[0, :2] = torch.tensor([-0.0, 0.0])
    lora, delta = factors(f"{LAYER}.v_proj", 16, HIDDEN)
    adapter = adapter_of(
        tmp_path / "adapter", {f"{LAYER}.q_proj.weight": value, **lora}, modules_to_save=["q_proj"]
    )
    fused = base[f"{LAYER}.qkv_proj.weight"].double()
    fused[:32] = value.double()
    fused[48:] += delta
    merge(tmp_path / "base", adapter, tmp_path / "out")
    check(base, {f"{LAYER}.qkv_proj.weight": fused}, tmp_path / "out")
    zeros = tensors_of(tmp_path / "out")[f"{LAYER}.qkv_proj.weight"][0, :2]
    assert zeros.signbit().tolist() == [True, False]


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_biases_of_q_k_v_go_into_a_bias_that_interleaves_by_head(
    weight: float, tmp_path: Path
) -> None:
    """bias="all" on GPT-NeoX: the fused bias is (head, q/k/v, dim), mixed in by weight."""
    base = base_of("gpt_neox", tmp_path / "base")
    module = "gpt_neox.layers.1.attention"
    name = f"{module}.query_key_value.bias"
    before = base[name].double()
    values = {
        f"{module}.{member}_proj.bias": drawn(place, HIDDEN) for place, member in enumerate("qkv")
    }
    adapter = adapter_of(tmp_path / "adapter", values, bias="all")
    fused = torch.stack([each.double().reshape(HEADS, -1) for each in values.values()], dim=1)
    merge(tmp_path / "base", adapter, tmp_path / "out", weight=weight)
    mixed = before + weight * (fused.reshape(-1) - before)
    check(base, {name: mixed}, tmp_path / "out")


def test_saved_fused_qkv_is_cut_onto_separate_projections(tmp_path: Path) -> None:
    """A llama base has q, k and v apart: 32, 16 and 16 rows of the adapter's one tensor."""
    base = base_of("llama", tmp_path / "base")
    value = drawn(4, 64, HIDDEN)
    adapter = adapter_of(
        tmp_path / "adapter", {f"{LAYER}.qkv_proj.weight": value}, modules_to_save=["qkv_proj"]
    )
    changed = {
        f"{LAYER}.{member}_proj.weight": part.double()
        for member, part in zip("qkv", value.split([32, 16, 16]), strict=True)
    }
    merge(tmp_path / "base", adapter, tmp_path / "out")
    check(base, changed, tmp_path / "out")


def test_a_part_and_the_whole_from_two_adapters_add_up(tmp_path: Path) -> None:
    """W + w1 (V1 - W) + w2 (V2 - W), where V2 is only known for q's rows."""
    base = base_of("phi3", tmp_path / "base")
    name = f"{LAYER}.qkv_proj.weight"
    whole, part = drawn(5, 64, HIDDEN), drawn(6, HIDDEN, HIDDEN)
    first = adapter_of(tmp_path / "first", {name: whole}, modules_to_save=["qkv_proj"])
    second = adapter_of(
        tmp_path / "second", {f"{LAYER}.q_proj.weight": part}, modules_to_save=["q_proj"]
    )
    before = base[name].double()
    mixed = whole.double().clone()
    mixed[:32] += 0.5 * (part.double() - before[:32])
    merge(tmp_path / "base", first, tmp_path / "out", add=[Strength(second, 0.5)])
    check(base, {name: mixed}, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["keep", "float32"])
def test_parts_come_apart_again_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    """A reversible merge keeps what stood in q's rows."""
    base_of("phi3", tmp_path / "base")
    lora, _ = factors(f"{LAYER}.v_proj", 16, HIDDEN)
    tensors = {f"{LAYER}.q_proj.weight": drawn(7, HIDDEN, HIDDEN), **lora}
    adapter = adapter_of(tmp_path / "adapter", tensors, modules_to_save=["q_proj"])
    merge(tmp_path / "base", adapter, tmp_path / "merged", reversible=True, dtype=dtype)
    unmerge(tmp_path / "merged", adapter, tmp_path / "out", exact=True)
    assert lost(tmp_path / "base", tmp_path / "out") == []


def test_a_value_of_another_size_is_refused(tmp_path: Path) -> None:
    """Exit 4 with the adapter's tensor."""
    base_of("phi3", tmp_path / "base")
    adapter = adapter_of(
        tmp_path / "adapter",
        {f"{LAYER}.q_proj.weight": drawn(8, HIDDEN, HIDDEN + 1)},
        modules_to_save=["q_proj"],
    )
    with pytest.raises(MismatchError) as caught:
        merge(tmp_path / "base", adapter, tmp_path / "out")
    assert caught.value.code is Code.SHAPE_MISMATCH
    assert str(caught.value.tensor).endswith("q_proj.weight")


def rescaled(weight: torch.Tensor, delta: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """What DoRA makes of a weight (out, in), in float64."""
    direction = weight.double() + delta
    return size.double()[:, None] / direction.norm(dim=1, keepdim=True) * direction


@pytest.mark.parametrize("saved", ["k_proj", "v_proj"])
def test_dora_is_right_beside_a_saved_part_and_refused_on_one(saved: str, tmp_path: Path) -> None:
    """It rescales v's rows of the base, whatever becomes of k's."""
    base = base_of("phi3", tmp_path / "base")
    name = f"{LAYER}.qkv_proj.weight"
    value, size = drawn(9, 16, HIDDEN), 1 + drawn(10, 16).abs()
    lora, delta = factors(f"{LAYER}.v_proj", 16, HIDDEN)
    tensors = {
        **lora,
        f"{LAYER}.{saved}.weight": value,
        f"{LAYER}.v_proj.lora_magnitude_vector": size,
    }
    adapter = adapter_of(tmp_path / "adapter", tensors, modules_to_save=[saved], use_dora=True)
    if saved == "v_proj":
        with pytest.raises(MismatchError, match="replaced or mixed"):
            merge(tmp_path / "base", adapter, tmp_path / "out")
        return
    fused = base[name].double()
    fused[32:48] = value.double()
    fused[48:] = rescaled(fused[48:], delta, size)
    merge(tmp_path / "base", adapter, tmp_path / "out")
    check(base, {name: fused}, tmp_path / "out")
