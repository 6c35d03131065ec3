"""Every field of PEFT's configs has a fate when an adapter is written."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from adaptool.layouts.peft_config import NOT_MERGEABLE
from adaptool.layouts.peft_encode import config_of
from adaptool.layouts.peft_fields import LORA, Fate
from adaptool.model.adapter import Adapter, Delta, Form, Replaced, Terms
from adaptool.model.derived import constant
from adaptool.model.reading import BaseNames
from adaptool.names.selection import Selection

WRITTEN_AS_READ = sorted(
    kind.value
    for kind in PEFT_TYPE_TO_CONFIG_MAPPING
    if kind.value != "LORA" and kind.value not in NOT_MERGEABLE
)


def names_of(config: Any) -> set[str]:
    """The fields of a config class."""
    return {field.name for field in dataclasses.fields(config)}


def _defaults(config: Any) -> dict[str, Any]:
    # AdaLoRA's schedule has no default.
    needed = {"total_step": 1} if "total_step" in names_of(config) else {}
    made = config(**needed)
    return {name: getattr(made, name) for name in names_of(config)}


def _adapter(config: dict[str, Any], **parts: Any) -> Adapter:
    empty: dict[str, Any] = {"deltas": (), "replaced": (), "leftover": (), "tensors": {}}
    return Adapter(name="a", layout="peft", config=config, findings=(), **{**empty, **parts})


def _lora(module: str, rank: int = 2) -> Delta:
    roles = {"A": constant("a", [0.0] * 4 * rank, (rank, 4))}
    roles["B"] = constant("b", [0.0] * 4 * rank, (4, rank))
    return Delta(module, f"{module}.weight", "lora", roles, Terms(Form.LINEAR, 4, 4, 3.0, rank))


def test_every_field_of_a_lora_config_has_a_fate() -> None:
    """Derived, carried or dropped, each with its reason; a field that PEFT adds fails here."""
    assert LORA.keys() == names_of(LoraConfig)
    assert all(entry.why for entry in LORA.values())


@pytest.mark.parametrize("kind", WRITTEN_AS_READ)
def test_configs_of_other_kinds_are_carried_whole(kind: str) -> None:
    """Whatever fields they have: their tensors are written as they were read, so all stay true."""
    types = {each.value: config for each, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    given = _defaults(types[kind]) | {"peft_type": kind, "base_model_name_or_path": None}
    assert config_of(_adapter(given)) == given


# What would leave out the module that the file holds, or take in others.
WRONG: dict[str, Any] = {
    "target_modules": ["k_proj"],
    "exclude_modules": ".*",
    "layers_to_transform": [7],
    "layers_pattern": "blocks",
    "modules_to_save": ["q_proj"],
    "target_parameters": ["q_proj.weight"],
    "trainable_token_indices": [1],
    "rank_pattern": {".*": 9},
    "alpha_pattern": {".*": 9},
    "r": 5,
    "lora_alpha": 5,
    "bias": "all",
    "use_dora": True,
    "lora_bias": True,
    "kasa_config": {},
    "velora_config": {"scale": 1.0},
    "monteclora_config": {"a": 1},
    "use_bdlora": {"nblocks": 2},
}
# Derived from more than one module can show, or by the operation that made the factors.
ELSEWHERE = {"use_rslora", "fan_in_fan_out", "lora_dropout", "init_lora_weights"}


@pytest.mark.parametrize("field", [name for name, e in LORA.items() if e.fate is Fate.DERIVED])
def test_derived_field_does_not_survive_what_contradicts_it(field: str) -> None:
    """A wrong value of one field in the given config is not in the written one."""
    if field in ELSEWHERE:
        return
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}
    found = config_of(_adapter({**given, field: WRONG[field]}, deltas=(_lora("l.0.q_proj"),)))
    selection = Selection.of(found)
    assert selection.takes("l.0.q_proj")
    assert not selection.takes_parameter("l.0.q_proj.weight")
    assert (found["r"], found["lora_alpha"]) == (2, 6)
    assert not found["rank_pattern"]
    assert not found["alpha_pattern"]
    if field not in {"r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"}:
        assert not found.get(field) or found[field] == "none"


LAYERS = [f"m.layers.{layer}.{name}" for layer in (0, 1) for name in ("q", "v", "to_out.0")]
TENSORS = (*(f"{module}.weight" for module in LAYERS), "m.norm.weight", "m.v.to_out.weight")
BASE = BaseNames(dict.fromkeys(TENSORS, (4, 4)), None)


@pytest.mark.parametrize("base", [None, BASE], ids=["alone", "base"])
@pytest.mark.parametrize(
    ("modules", "targets"),
    [
        (["m.layers.0.q", "m.layers.1.q"], ["q"]),
        (
            ["m.layers.1.q", "m.layers.1.v", "m.layers.0.v"],
            ["layers.0.v", "layers.1.q", "layers.1.v"],
        ),
        (["m.layers.0.to_out.0", "m.layers.1.to_out.0"], ["to_out.0"]),
        (["m.v.to_out"], ["v.to_out"]),
    ],
)
def test_names_made_here_select_the_modules_alone(
    modules: list[str], targets: list[str], base: BaseNames | None
) -> None:
    """Endings where the base's modules are known, also those that only hold others; else paths."""
    found = config_of(_adapter({}, deltas=tuple(map(_lora, modules))), base=base)
    selection = Selection.of(found)
    every = {*LAYERS, "m.layers.0.to_out", "m.layers.1.to_out", "m.v", "m.v.to_out", "m.norm"}
    assert {module for module in every if selection.takes(module)} == set(modules)
    assert found["target_modules"] == (sorted(modules) if base is None else targets)


def test_saved_modules_are_named_without_taking_others() -> None:
    """PEFT's rule knows no dots: `norm` would save every module that ends so."""
    value = constant("w", [0.0] * 4, (4,))
    saved = (Replaced("m.norm.weight", value, saved_module=True),)
    found = config_of(_adapter({}, deltas=(_lora("m.layers.0.input_norm"),), replaced=saved))
    assert found["modules_to_save"] == ["m.norm"]
