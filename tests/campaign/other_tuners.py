"""Tuners other than LoRA, with options that fit any small linear layer."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

Drawer = Callable[[random.Random], dict[str, Any]]


def _patterned(rng: random.Random) -> dict[str, Any]:
    return {"r": rng.choice((1, 2, 3)), "alpha": rng.choice((2, 5, 8))}


TUNERS: Mapping[str, Drawer] = {
    "LOHA": _patterned,
    "LOKR": lambda rng: {**_patterned(rng), "decompose_factor": rng.choice((-1, 4))},
    "IA3": lambda _rng: {"feedforward_modules": []},
    "ADALORA": lambda rng: {
        "init_r": rng.choice((2, 4)),
        "target_r": 2,
        "lora_alpha": 8,
        "total_step": 10,
        "lora_dropout": 0.0,
    },
    "OFT": lambda rng: {"r": 0, "oft_block_size": rng.choice((4, 8))},
    "BOFT": lambda _rng: {"boft_block_size": 4},
    "VERA": lambda rng: {"r": 4, "save_projection": rng.random() < 0.5},
    "MISS": lambda rng: {"r": rng.choice((2, 4))},
    "DELORA": lambda _rng: {"r": 4},
    "GRALORA": lambda _rng: {"r": 4, "gralora_k": 2},
    "FOURIERFT": lambda _rng: {"n_frequency": 16, "scaling": 50.0},
    "HRA": lambda rng: {"r": rng.choice((2, 4))},
    "RANDLORA": lambda _rng: {"r": 4},
    "ROAD": lambda _rng: {"group_size": 4},
    "SHIRA": lambda _rng: {"r": 2},
    "C3A": lambda _rng: {"block_size": 4},
    "HIRA": lambda _rng: {"r": 4},
    "LN_TUNING": lambda _rng: {},
    "TRAINABLE_TOKENS": lambda rng: {"token_indices": rng.sample(range(3, 56), 3)},
}
# Rotations and products of many factors leave their range where steps are large.
_STEPS = {"OFT": 0.05, "BOFT": 0.05, "HRA": 0.2, "FOURIERFT": 1.0, "LN_TUNING": 0.15}


def step(kind: str) -> float:
    """How far a trained value moves from where it began."""
    return _STEPS.get(kind, 0.15)


def draw(rng: random.Random, modules: Any) -> tuple[str, dict[str, Any]]:
    """PEFT's type and options."""
    kind = rng.choice(sorted(TUNERS))
    options = TUNERS[kind](rng)
    pool = {"LN_TUNING": modules.norms, "TRAINABLE_TOKENS": modules.embeddings[:1]}.get(
        kind, modules.linears
    )
    names = [rng.choice(pool or modules.linears) for _ in range(rng.choice((1, 2)))]
    options["target_modules"] = sorted({name.rpartition(".")[2] for name in names})
    if kind not in {"LN_TUNING", "TRAINABLE_TOKENS"} and rng.random() < 0.15:
        options["layers_to_transform"] = [rng.choice((0, 1))]
    if rng.random() < 0.12 and modules.heads and kind != "TRAINABLE_TOKENS":
        options["modules_to_save"] = [rng.choice(modules.heads).rpartition(".")[2]]
    return kind, options
