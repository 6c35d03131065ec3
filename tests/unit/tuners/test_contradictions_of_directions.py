"""Contradictions in files of tuners that work on the base's own directions, or read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.tuners import tuners

Shapes = Mapping[str, tuple[int, ...]]
TINY: Shapes = {"A": (2, 6), "B": (4, 2), "P": (5, 2, 2), "v.0": (5,)}
CASES: Mapping[str, tuple[str, Mapping[str, Any], Shapes, Code]] = {
    "TinyLoRA of two ranks": ("tinylora", {}, {**TINY, "B": (4, 3)}, Code.FACTOR_RANKS_DIFFER),
    "TinyLoRA without its second vector": (
        "tinylora",
        {},
        {**TINY, "v.2": (5,)},
        Code.FACTOR_MISSING,
    ),
    "TinyLoRA with longer vectors": ("tinylora", {}, {**TINY, "v.0": (6,)}, Code.SHAPE_MISMATCH),
    "TinyLoRA tied twice": ("tinylora", {"weight_tying": 2.0}, TINY, Code.FIELD_VALUE),
    "Super-Tuning with fewer places": (
        "supertuning",
        {},
        {"values": (4,), "indices": (3,)},
        Code.SHAPE_MISMATCH,
    ),
    "Supra with one factor": (
        "supertuning",
        {"r": 2},
        {"values": (4,), "indices": (4,), "A": (2, 6)},
        Code.FACTOR_MISSING,
    ),
    "Supra at another rank": (
        "supertuning",
        {"r": 3},
        {"values": (4,), "indices": (4,), "A": (2, 6), "B": (4, 2)},
        Code.RANK_MISMATCH,
    ),
    "OSF of more components than there are": (
        "osf",
        {},
        {"U": (4, 5), "S": (5,), "V": (5, 6)},
        Code.SHAPE_MISMATCH,
    ),
    "PEANuT that does not come back": (
        "peanut",
        {},
        {"A": (2, 4), "B": (6, 2)},
        Code.SHAPE_MISMATCH,
    ),
    "PEANuT without a decoder": (
        "peanut",
        {"depth": 1},
        {"A": (2, 4), "B": (4, 2), "encoder.0": (2, 2)},
        Code.FACTOR_MISSING,
    ),
    "PEANuT with another inner rank": (
        "peanut",
        {"depth": 1},
        {"A": (2, 4), "B": (4, 2), "encoder.0": (2, 2), "decoder.0": (3, 3)},
        Code.FACTOR_RANKS_DIFFER,
    ),
    "PSOFT at another rank": ("psoft", {"r": 4}, {"R": (3,)}, Code.RANK_MISMATCH),
    "PSOFT without a scale": ("psoft", {"r": 3, "psoft_alpha": 0}, {"R": (3,)}, Code.FIELD_VALUE),
    "PSOFT bounded by nothing": (
        "psoft",
        {"r": 3, "use_cayley_neumann": True, "cayley_neumann_eps": 0.0},
        {"R": (3,)},
        Code.FIELD_VALUE,
    ),
    "DEFT of two ranks": ("deft", {"r": 2}, {"P": (4, 2), "R": (3, 6)}, Code.FACTOR_RANKS_DIFFER),
    "DEFT at another rank": ("deft", {"r": 3}, {"P": (4, 2), "R": (2, 6)}, Code.RANK_MISMATCH),
    "PaRa with what it does not give": (
        "deft",
        {"r": 2, "para": True},
        {"P": (4, 2), "R": (2, 6)},
        Code.FACTOR_MISSING,
    ),
    "FRoD with a basis of another width": (
        "frod",
        {},
        {"l": (6,), "values": (2,), "V.module": (5, 5), "places.module": (2, 2)},
        Code.SHAPE_MISMATCH,
    ),
}
REFUSED: Mapping[str, tuple[str, Mapping[str, Any], Shapes]] = {
    "TinyLoRA without projections": (
        "tinylora",
        {},
        {role: shape for role, shape in TINY.items() if role != "P"},
    ),
    "Super-Tuning without places": ("supertuning", {}, {"values": (4,)}),
    "PEANuT with xIELU": ("peanut", {"act_fn": "xielu"}, {"A": (2, 4), "B": (4, 2)}),
    "FRoD without a basis": ("frod", {}, {"l": (6,), "values": (2,)}),
}


@pytest.mark.parametrize("case", CASES)
def test_contradiction_is_refused(case: str) -> None:
    """With its own code, before any weight is read."""
    tuner, config, shapes, code = CASES[case]
    with pytest.raises(InputError) as caught:
        tuners()[tuner].terms(config, "module", shapes)
    assert caught.value.code is code


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_file_lacks_is_named(case: str) -> None:
    """Nothing is wrong with the file; it cannot be merged as it is."""
    tuner, config, shapes = REFUSED[case]
    with pytest.raises(MismatchError) as caught:
        tuners()[tuner].terms(config, "module", shapes)
    assert caught.value.code is Code.TUNER_UNSUPPORTED
    assert caught.value.field
