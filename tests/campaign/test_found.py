"""What the campaign found once, in its smallest form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from campaign.drawing import Case, Operation, Trained
from campaign.judging import judge
from campaign.truths import quiet

WHOLE = {"rank": None, "base": False}
HALF = {"weights": [0.5], "method": "cat", "rank": None, "base": True, "same": False}


def _lora(*targets: str, **options: Any) -> tuple[Trained, ...]:
    return (Trained("LORA", {"r": 2, "target_modules": list(targets), **options}, 4, {}),)


SUM = {"weights": [2.0, 1.0], "method": "cat", "rank": None, "base": False, "same": False}
FOUND: dict[str, tuple[str, Operation, tuple[Trained, ...]]] = {
    "rows of an embedding that is called shared": (
        "blenderbot",
        Operation("resize", WHOLE),
        _lora("out_proj", trainable_token_indices=[8]),
    ),
    "one layer of two": (
        "llama",
        Operation("convert", {"way": "mlx", "base": False}),
        _lora("k_proj", "up_proj", layers_to_transform=[1]),
    ),
    "extract of one layer of two": (
        "llama",
        Operation("extract", {"rank": 12}),
        _lora("up_proj", layers_to_transform=0),
    ),
    "saved modules are weighed": (
        "llama",
        Operation("combine", HALF),
        _lora("v_proj", modules_to_save=["k_proj"]),
    ),
    "a baked DoRA is the same adapter": (
        "llama",
        Operation("diff", {"way": "bake", "base": False}),
        _lora("down_proj", use_dora=True, lora_alpha=-5),
    ),
    "two layers of a block are no one module": (
        "xglm",
        Operation("combine", SUM),
        _lora(target_parameters=["fc1.weight"]) + _lora("fc2", layers_to_transform=[1]),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str, tmp_path: Path) -> None:
    architecture, operation, adapters = FOUND[name]
    with quiet():
        outcome = judge(Case(1, architecture, False, "one file", operation), tmp_path, adapters)
    assert outcome.outcome == "agreed", outcome


def test_a_lora_without_factors_is_refused(tmp_path: Path) -> None:
    """Token rows alone are no LoRA: PEFT raises where nothing is to be wrapped."""
    rows = Trained(
        "TRAINABLE_TOKENS", {"token_indices": [5], "target_modules": ["embed_tokens"]}, 4, {}
    )
    case = Case(
        1,
        "llama",
        False,
        "one file",
        Operation("combine", {**HALF, "weights": [1.0], "base": False}),
    )
    with quiet():
        outcome = judge(case, tmp_path, (rows,))
    assert (outcome.outcome, outcome.code) == ("refused", "layout-cannot-hold"), outcome
