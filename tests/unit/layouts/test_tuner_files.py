"""PEFT files of other tuners than LoRA that contradict themselves, or hold what nobody knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adaptool.errors import AdaptoolError, InputError, MismatchError
from adaptool.findings import Code
from adaptool.layouts import peft
from adaptool.model.adapter import Adapter
from adaptool.store.adapter_files import open_adapter

Q = "base_model.model.m.q_proj"
ADALORA = {"peft_type": "ADALORA", "init_r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
LOHA = {"peft_type": "LOHA", "r": 2, "alpha": 4, "target_modules": ["q_proj"]}
LOKR = {"peft_type": "LOKR", "r": 2, "alpha": 4, "target_modules": ["q_proj"]}
VERA = {
    "peft_type": "VERA",
    "r": 2,
    "projection_prng_key": 0,
    "save_projection": True,
    "target_modules": ["q_proj"],
}
IA3 = {"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}
SHAPES = {
    "ADALORA": {f"{Q}.lora_A": (4, 6), f"{Q}.lora_B": (5, 4), f"{Q}.lora_E": (4, 1)},
    "LOHA": {
        f"{Q}.hada_w1_a": (5, 2),
        f"{Q}.hada_w1_b": (2, 6),
        f"{Q}.hada_w2_a": (5, 2),
        f"{Q}.hada_w2_b": (2, 6),
    },
    "LOKR": {f"{Q}.lokr_w1": (1, 2), f"{Q}.lokr_w2_a": (5, 2), f"{Q}.lokr_w2_b": (2, 3)},
    "VERA": {
        f"{Q}.vera_lambda_b": (5,),
        f"{Q}.vera_lambda_d": (2,),
        "base_model.vera_A": (2, 6),
        "base_model.vera_B": (5, 2),
    },
    "IA3": {f"{Q}.ia3_l": (5, 1)},
}
CONFIGS = {entry["peft_type"]: entry for entry in (ADALORA, LOHA, LOKR, VERA, IA3)}
every_kind = pytest.mark.parametrize("kind", SHAPES)


def _decoded(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], **dtypes: Any
) -> Adapter:
    tensors = {
        name: torch.ones(shape, dtype=dtypes.get(name.rpartition(".")[2], torch.float32))
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(dict(config)))
    with open_adapter(folder) as files:
        return peft.decode(files)


def _refused(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], **dtypes: Any
) -> AdaptoolError:
    with pytest.raises((InputError, MismatchError)) as caught:
        _decoded(folder, shapes, config, **dtypes)
    return caught.value


@every_kind
def test_whole_files_are_decoded(kind: str, tmp_path: Path) -> None:
    """What the other tests break."""
    adapter = _decoded(tmp_path, SHAPES[kind], CONFIGS[kind])
    found = {ref.name for delta in adapter.deltas for ref in delta.roles.values()}
    assert found == set(SHAPES[kind])


@pytest.mark.parametrize(
    ("kind", "ending", "code"),
    [
        *(("ADALORA", ending, Code.KEYS_UNRECOGNISED) for ending in ("lora_A", "lora_B", "lora_E")),
        *(("LOHA", ending, Code.KEYS_UNRECOGNISED) for ending in ("hada_w1_a", "hada_w2_b")),
        *(("LOKR", ending, Code.FACTOR_MISSING) for ending in ("lokr_w1", "lokr_w2_a")),
        ("VERA", "vera_lambda_d", Code.KEYS_UNRECOGNISED),
        *(("VERA", ending, Code.FACTOR_MISSING) for ending in ("vera_A", "vera_B")),
    ],
)
def test_a_missing_factor_is_named(kind: str, ending: str, code: Code, tmp_path: Path) -> None:
    """A file that lost a tensor is refused, with the module it is missing from."""
    shapes = {name: shape for name, shape in SHAPES[kind].items() if not name.endswith(ending)}
    error = _refused(tmp_path, shapes, CONFIGS[kind])
    assert error.code is code
    assert "q_proj" in str(error.tensor)


@pytest.mark.parametrize(
    ("kind", "ending", "shape", "code"),
    [
        ("ADALORA", "lora_E", (3, 1), Code.FACTOR_RANKS_DIFFER),
        ("ADALORA", "lora_B", (5, 4, 1), Code.FACTOR_RANKS_DIFFER),
        ("LOHA", "hada_w1_b", (3, 6), Code.FACTOR_RANKS_DIFFER),
        ("LOHA", "hada_w1_b", (2, 7), Code.SHAPE_MISMATCH),
        ("LOKR", "lokr_w2_b", (3, 3), Code.FACTOR_MISSING),
        ("LOKR", "lokr_w1", (2,), Code.FACTOR_MISSING),
        ("VERA", "vera_lambda_d", (3,), Code.SHAPE_MISMATCH),
        ("VERA", "vera_B", (4, 2), Code.SHAPE_MISMATCH),
        ("IA3", "ia3_l", (5, 2), Code.SHAPE_MISMATCH),
        ("IA3", "ia3_l", (5,), Code.SHAPE_MISMATCH),
        ("IA3", "ia3_l", (0, 1), Code.ZERO_SIZE),
    ],
)
def test_shapes_that_do_not_fit_each_other_are_refused(
    kind: str, ending: str, shape: tuple[int, ...], code: Code, tmp_path: Path
) -> None:
    """The numbers of both stand in the message."""
    shapes = {name: shape if name.endswith(ending) else own for name, own in SHAPES[kind].items()}
    error = _refused(tmp_path, shapes, CONFIGS[kind])
    assert error.code is code


@every_kind
def test_whole_numbers_are_no_factors(kind: str, tmp_path: Path) -> None:
    """Only tensors that a tuner declares as indices may hold them."""
    ending = next(iter(SHAPES[kind])).rpartition(".")[2]
    error = _refused(tmp_path, SHAPES[kind], CONFIGS[kind], **{ending: torch.int32})
    assert error.code is Code.DTYPE_NOT_FLOAT


@pytest.mark.parametrize(
    ("kind", "field", "value", "code"),
    [
        ("ADALORA", "init_r", None, Code.FIELD_MISSING),
        ("ADALORA", "init_r", 0, Code.FIELD_VALUE),
        ("ADALORA", "init_r", "4", Code.FIELD_TYPE),
        ("ADALORA", "lora_alpha", None, Code.FIELD_MISSING),
        ("LOHA", "alpha", None, Code.FIELD_MISSING),
        ("LOHA", "alpha", "4", Code.FIELD_TYPE),
        ("LOHA", "r", 3, Code.RANK_MISMATCH),
        ("LOHA", "rank_pattern", {"q_proj": 5}, Code.RANK_MISMATCH),
        ("LOKR", "r", True, Code.FIELD_TYPE),
        ("LOKR", "alpha", 1e300, Code.SCALING_NOT_FINITE),
    ],
)
def test_fields_that_the_scale_needs_are_checked(
    kind: str, field: str, value: object, code: Code, tmp_path: Path
) -> None:
    """A missing, mistyped or contradicting field would make the scale wrong."""
    error = _refused(tmp_path, SHAPES[kind], {**CONFIGS[kind], field: value})
    assert error.code is code
    assert error.field == ("r" if code is Code.RANK_MISMATCH else field)


def test_a_prng_key_is_needed_where_projections_are_not_stored(tmp_path: Path) -> None:
    """Without either nothing tells what the vectors multiply."""
    shapes = {name: shape for name, shape in SHAPES["VERA"].items() if "lambda" in name}
    config = {**VERA, "save_projection": False, "projection_prng_key": None}
    error = _refused(tmp_path, shapes, config)
    assert (error.code, error.field) == (Code.FIELD_MISSING, "projection_prng_key")


@every_kind
def test_a_stranger_beside_the_tensors_is_refused(kind: str, tmp_path: Path) -> None:
    """Never taken for a tensor that replaces the base's."""
    error = _refused(tmp_path, {**SHAPES[kind], f"{Q}.hra_u": (5, 2)}, CONFIGS[kind])
    assert error.code is Code.KEYS_UNRECOGNISED


def test_shared_tensors_without_modules_are_no_adapter(tmp_path: Path) -> None:
    """Projections alone change nothing."""
    shapes = {name: shape for name, shape in SHAPES["VERA"].items() if "lambda" not in name}
    assert _refused(tmp_path, shapes, VERA).code is Code.NO_ADAPTER_TENSORS


def test_a_pruned_module_keeps_its_place(tmp_path: Path) -> None:
    """AdaLoRA's rank 0: tensors without elements."""
    shapes = {f"{Q}.lora_A": (0, 6), f"{Q}.lora_B": (5, 0), f"{Q}.lora_E": (0, 1)}
    adapter = _decoded(tmp_path, shapes, ADALORA)
    assert [delta.terms.rank for delta in adapter.deltas] == [0]


def test_a_bias_that_shares_its_numbers_is_counted_once(tmp_path: Path) -> None:
    """IA3's vector scales weight and bias, and is one tensor."""
    adapter = _decoded(tmp_path, SHAPES["IA3"], IA3)
    assert [delta.parameter for delta in adapter.deltas] == ["m.q_proj.weight", "m.q_proj.bias"]
    assert [delta.optional for delta in adapter.deltas] == [False, True]
    assert sum(delta.parameters for delta in adapter.deltas) == 5
