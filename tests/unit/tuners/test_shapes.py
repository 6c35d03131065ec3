"""Shapes and config values that contradict each other are refused by the tuner that reads them."""

from __future__ import annotations

from typing import Any

import pytest

from adaptool.errors import AdaptoolError
from adaptool.tuners import tuners

Shapes = dict[str, tuple[int, ...]]
OFT = {"use_cayley_neumann": False}
BANK = {"bank": (20, 8)}
LOGITS = {"logits_A": (2, 4, 20), "logits_B": (4, 2, 20)}
RAND = {"r": 4, "randlora_alpha": 8, "projection_prng_key": 0}


@pytest.mark.parametrize(
    ("tuner", "shapes", "config", "wanted", "exit_code"),
    [
        ("oft", {"R": (4, 7)}, OFT, "(blocks, b (b - 1) / 2)", 3),
        ("oft", {"R": (4, 28)}, {"block_share": True}, "there are 4 blocks", 3),
        ("oft", {"R": (4, 28)}, {"use_cayley_neumann": "yes"}, "true or false", 3),
        ("oft", {"r": (4, 8, 8)}, OFT, "no layout", 4),
        ("oft", {"r": (4, 8, 6), "s": (32, 1)}, OFT, "[4, 8, 6]", 3),
        ("oft", {"R": (4, 28), "embedding_R": (4, 28)}, OFT, "no layout", 4),
        ("boft", {"R": (1, 4, 8, 6), "s": (32, 1)}, {}, "[1, 4, 8, 6]", 3),
        ("boft", {"R": (2, 4, 3, 3), "s": (32, 1)}, {}, "cannot be halved", 3),
        ("boft", {"R": (3, 6, 4, 4), "s": (32, 1)}, {}, "cannot be halved", 3),
        ("miss", {"M": (4, 32)}, {"init_weights": "bat"}, "'bat'", 3),
        ("miss", {"M": (8, 4, 4)}, {"init_weights": True}, "[8, 4, 4]", 3),
        ("fourierft", {"spectrum": (3, 3)}, {"random_loc_seed": 1, "scaling": 1}, "[3, 3]", 3),
        ("fourierft", {"spectrum": (3,)}, {"random_loc_seed": None, "scaling": 1}, "missing", 3),
        ("fourierft", {"spectrum": (3,)}, {"random_loc_seed": 1}, "missing", 3),
        ("hra", {"u": (32,)}, {}, "[32]", 3),
        ("vblora", {**BANK, "logits_A": (2, 4, 20)}, {"topk": 2}, "missing", 3),
        ("vblora", {**BANK, **LOGITS, "logits_B": (4, 3, 20)}, {"topk": 2}, "rank 2, of B 3", 3),
        ("vblora", {**LOGITS, "bank": (21, 8)}, {"topk": 2}, "21 vectors", 3),
        ("vblora", {**BANK, **LOGITS}, {"topk": 21}, "20 vectors", 3),
        ("vblora", {**BANK, **LOGITS}, {}, "missing", 3),
        ("randlora", {"lambda": (4, 8), "gamma": (7, 32)}, RAND, "[7, 32]", 3),
        ("randlora", {"lambda": (5, 8), "gamma": (8, 32)}, RAND, "rank 5", 3),
        ("randlora", {"lambda": (4, 8), "gamma": (8, 32), "A": (4, 1, 32)}, RAND, "without", 3),
        ("hira", {"A": (4, 32), "embedding_B": (32, 4)}, {}, "no pair", 3),
        ("hira", {"A": (4, 32), "B": (32, 3)}, {}, "rank in common", 3),
        ("shira", {"values": (5,), "indices": (2, 6)}, {}, "[2, 6]", 3),
    ],
)
def test_contradiction_names_the_numbers(
    tuner: str, shapes: Shapes, config: dict[str, Any], wanted: str, exit_code: int
) -> None:
    """Malformed input is exit 3, a layout that is not supported exit 4."""
    with pytest.raises(AdaptoolError) as caught:
        tuners()[tuner].terms(config, "layers.0.q_proj", shapes)
    assert caught.value.exit == exit_code
    assert wanted in caught.value.message
