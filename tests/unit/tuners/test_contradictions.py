"""Files whose tensors contradict each other or their config are refused, and told why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Form, Terms
from adaptool.model.view import View, whole
from adaptool.tuners import tuners

Shapes = Mapping[str, tuple[int, ...]]
CASES: Mapping[str, tuple[str, Mapping[str, Any], Shapes, Code]] = {
    "C3A without blocks": ("c3a", {}, {"kernel": (4, 4)}, Code.SHAPE_MISMATCH),
    "RoAd of another group": (
        "road",
        {"variant": "road_1", "group_size": 8},
        {"theta": (6,), "alpha": (6,)},
        Code.SHAPE_MISMATCH,
    ),
    "RoAd with fewer scales": (
        "road",
        {"variant": "road_2", "group_size": 4},
        {"theta": (8,), "alpha": (4,)},
        Code.SHAPE_MISMATCH,
    ),
    "RoAd of no variant": (
        "road",
        {"variant": "road_3"},
        {"theta": (64,), "alpha": (64,)},
        Code.FIELD_TYPE,
    ),
    "DeLoRA of two ranks": (
        "delora",
        {},
        {"A": (2, 4), "B": (4, 3), "lambda": (1,), "norms": (4,)},
        Code.FACTOR_RANKS_DIFFER,
    ),
    "DeLoRA with norms of outputs": (
        "delora",
        {},
        {"A": (2, 4), "B": (6, 2), "lambda": (1,), "norms": (6,)},
        Code.SHAPE_MISMATCH,
    ),
    "GraLoRA of no grid": (
        "gralora",
        {"r": 3, "alpha": 1},
        {"A": (2, 4, 3), "B": (2, 3, 4)},
        Code.FACTOR_RANKS_DIFFER,
    ),
    "GraLoRA at another rank": (
        "gralora",
        {"r": 8, "alpha": 1},
        {"A": (2, 4, 4), "B": (2, 4, 4)},
        Code.RANK_MISMATCH,
    ),
    "GraLoRA with half of a plain product": (
        "gralora",
        {"r": 4, "alpha": 1, "hybrid_r": 2},
        {"A": (2, 4, 4), "B": (2, 4, 4), "general_A": (2, 8)},
        Code.SHAPE_MISMATCH,
    ),
    "PVeRA with an odd number of directions": (
        "pvera",
        {"projection_prng_key": 0},
        {"lambda_b": (4,), "lambda_d": (5,)},
        Code.SHAPE_MISMATCH,
    ),
    "PVeRA with VeRA's projection": (
        "pvera",
        {},
        {"lambda_b": (4,), "lambda_d": (6,), "A": (3, 4), "B": (4, 3)},
        Code.SHAPE_MISMATCH,
    ),
    "WaveFT with a wavelet that PEFT has no numbers for": (
        "waveft",
        {"random_loc_seed": 1, "scaling": 1.0, "wavelet_family": "db11"},
        {"spectrum": (5,)},
        Code.FIELD_TYPE,
    ),
    "Uni-LoRA with scales of another shape": (
        "unilora",
        {},
        {
            "indices_A": (2, 4),
            "indices_B": (4, 2),
            "scales_A": (4, 2),
            "scales_B": (4, 2),
            "theta": (9,),
        },
        Code.SHAPE_MISMATCH,
    ),
    "KaSA that keeps nothing": (
        "kasa",
        {"r": 4, "lora_alpha": 4},
        {"A": (4, 4), "B": (6, 4), "diag": (4,)},
        Code.SHAPE_MISMATCH,
    ),
    "KaSA with other singular values": (
        "kasa",
        {"r": 2, "lora_alpha": 4},
        {"A": (2, 4), "B": (6, 2), "diag": (3,)},
        Code.FACTOR_RANKS_DIFFER,
    ),
    "GLoRA with half a product": ("glora", {}, {"A.Xd": (4, 2)}, Code.FACTOR_MISSING),
    "GLoRA for two sizes": ("glora", {}, {"A.X": (4, 1), "B.X": (6, 1)}, Code.SHAPE_MISMATCH),
    "BEFT with a matrix": ("beft", {}, {"difference": (2, 4)}, Code.SHAPE_MISMATCH),
}


@pytest.mark.parametrize("name", CASES)
def test_tensors_that_do_not_belong_together_are_refused(name: str) -> None:
    """Before any of them is loaded, with the module named or the config's field."""
    tuner, config, shapes, code = CASES[name]
    with pytest.raises(InputError) as caught:
        tuners()[tuner].terms(config, "layer.q_proj", shapes)
    assert caught.value.code == code
    assert caught.value.tensor == "layer.q_proj" or caught.value.field


def test_index_outside_of_the_vector_is_refused() -> None:
    """Uni-LoRA's indices are numbers that somebody wrote."""
    factors = {
        "theta": torch.ones(3),
        "indices_A": torch.tensor([[0, 3]]),
        "indices_B": torch.tensor([[0], [1]]),
        "scales_A": torch.ones(1, 2),
        "scales_B": torch.ones(2, 1),
    }
    terms = Terms(Form.LINEAR, 2, 2, 1.0, rank=1)
    view = View(whole(2), whole(2))
    with pytest.raises(InputError, match="from 0 to 3, theta has 3 numbers"):
        tuners()["unilora"].prepare(factors, terms, view, 1.0, exact=True)


def test_bias_from_a_weight_that_is_stored_otherwise_is_refused() -> None:
    """GLoRA's W C needs W as (out, in)."""
    factors = {"C.X": torch.ones(3, 1), "E.X": torch.ones(2), "W": torch.ones(3, 2)}
    terms = Terms(Form.VECTOR, 2, 1, 1.0)
    view = View(whole(2), whole(1))
    with pytest.raises(MismatchError, match="2 x 3, the base has"):
        tuners()["glora"].prepare(factors, terms, view, 1.0, exact=True)
