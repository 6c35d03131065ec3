"""Where modules stand in a heatmap."""

from __future__ import annotations

import math

import pytest

from adaptool.model.module_grid import Scale, arranged, scale_of
from adaptool.model.results import ModuleRow


def row(module: str, norm: float | None = 1.0, base: float | None = None) -> ModuleRow:
    """A module with a norm."""
    return ModuleRow(module, "lora", 4, 2.0, (8, 8), 64, 1.0, norm=norm, base_norm=base)


def test_layers_are_ordered_as_numbers_and_targets_as_data_flows() -> None:
    """Layer 10 comes after layer 9, down_proj after q_proj."""
    names = ("mlp.down_proj", "self_attn.q_proj")
    rows = [row(f"model.layers.{layer}.{name}") for layer in range(12) for name in names]
    (grid,) = arranged(rows).grids
    assert grid.stack == "model.layers"
    assert grid.layers == tuple(map(str, range(12)))
    assert grid.targets == ("self_attn.q_proj", "mlp.down_proj")
    assert grid.cells["10", "mlp.down_proj"].rows[0].module == "model.layers.10.mlp.down_proj"


def test_every_module_has_one_place() -> None:
    """What stands in no stack of two layers stands alone."""
    names = ["lm_head", "model.layers.0.a", "model.layers.1.a", "vision.blocks.0.a", "score.3"]
    found = arranged([row(name) for name in names])
    placed = [
        each.module for grid in found.grids for cell in grid.cells.values() for each in cell.rows
    ]
    assert sorted([*placed, *(each.module for each in found.alone)]) == sorted(names)
    assert [grid.stack for grid in found.grids] == ["model.layers"]


def test_experts_of_a_layer_share_a_cell() -> None:
    """A cell's norm is that of all experts together; one that is unknown makes it unknown."""
    rows = [
        row(f"layers.{layer}.mlp.experts.{expert}.up_proj", 3.0 if expert else 4.0, 10.0)
        for layer in range(2)
        for expert in range(2)
    ]
    (grid,) = arranged(rows).grids
    assert grid.targets == ("mlp.experts.*.up_proj",)
    cell = grid.cells["1", "mlp.experts.*.up_proj"]
    assert cell.norm == pytest.approx(5.0)
    assert cell.relative == pytest.approx(5.0 / math.hypot(10.0, 10.0))
    rows[0] = row(rows[0].module, None)
    assert arranged(rows).grids[0].cells["0", "mlp.experts.*.up_proj"].norm is None


def test_blocks_in_blocks_make_layers_only_where_their_targets_repeat() -> None:
    """A UNet's blocks in blocks are stacks of their own; the unlike sublayers of T5 are targets."""
    unet = [
        row(f"down_blocks.{block}.attentions.{inner}.{name}")
        for block in range(2)
        for inner in range(2)
        for name in ("proj_in", "transformer_blocks.0.q", "transformer_blocks.1.q")
    ]
    deep, flat = arranged(unet).grids
    assert flat.stack == "down_blocks.*.attentions"
    assert (flat.layers, flat.targets) == (("0.0", "0.1", "1.0", "1.1"), ("proj_in",))
    assert deep.stack == "down_blocks.*.attentions.*.transformer_blocks"
    assert deep.layers[:3] == ("0.0.0", "0.0.1", "0.1.0")
    assert deep.targets == ("q",)
    t5 = [row(f"encoder.block.{block}.layer.0.SelfAttention.q") for block in range(2)]
    t5 += [row(f"encoder.block.{block}.layer.1.DenseReluDense.wi") for block in range(2)]
    (grid,) = arranged(t5).grids
    assert grid.layers == ("0", "1")
    assert grid.targets == ("layer.0.SelfAttention.q", "layer.1.DenseReluDense.wi")


@pytest.mark.parametrize(
    "module", ["", ".", "...", "0", "0.0.0", "a.99999999999999999999.b", "a.٣.b"]
)
def test_odd_names_are_placed_too(module: str) -> None:
    """Names are foreign text: none of them is an error."""
    found = arranged([row(module), row("model.layers.0.q"), row("model.layers.1.q")])
    assert len(found.alone) + sum(len(grid.cells) for grid in found.grids) == 3


def test_scale_is_linear_until_values_spread_widely() -> None:
    """Equal widths; from a ratio of 30 on equal ratios, zeros at the bottom."""
    linear = scale_of([1.0, 2.0, 5.0], 4)
    assert linear == Scale(1.0, 5.0, logarithmic=False, steps=4)
    assert [linear.step(value) for value in (1.0, 1.9, 2.1, 5.0)] == [0, 0, 1, 3]
    wide = scale_of([0.0, 1e-4, 1.0], 4)
    assert wide is not None
    assert wide.logarithmic
    assert [wide.step(value) for value in (0.0, 1e-4, 2e-3, 1.0)] == [0, 0, 1, 3]


def test_scale_of_nothing_or_of_one_value() -> None:
    """No value, no scale; equal values are the middle step; what is not finite does not count."""
    assert scale_of([], 4) is None
    assert scale_of([math.nan, math.inf], 4) is None
    same = scale_of([2.0, 2.0, math.nan], 4)
    assert same is not None
    assert same.step(2.0) == 2
