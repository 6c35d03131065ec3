"""The campaign itself: a few of its seeds, and that it finds a product that was spoilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import adaptool
from campaign.architectures import names
from campaign.drawing import Case, Operation, Trained, case_of
from campaign.judging import Outcome, judge
from campaign.truths import quiet

PLAIN = Trained("LORA", {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj"]}, 5, {})
SUM = {"weights": [0.5, 2.0], "method": "cat", "rank": None, "base": False, "same": True}


def outcome_of(case: Case, folder: Path, *adapters: Trained) -> Outcome:
    with quiet():
        return judge(case, folder, adapters or None)


def llama(verb: str, **options: Any) -> Case:
    return Case(1, "llama", False, "one file", Operation(verb, options))


def test_a_seed_draws_one_case() -> None:
    assert case_of(17) == case_of(17)
    assert len({case_of(seed).architecture for seed in range(2000)}) == len(names())
    assert len(names()) > 100


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_none_of_a_few_seeds_is_wrong(seed: int, tmp_path: Path) -> None:
    outcome = outcome_of(case_of(seed), tmp_path)
    assert outcome.outcome in {"agreed", "refused"}, outcome


def half_of_the_weights(out: Path) -> None:
    file = out / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.weight"] *= 1.01
    save_file(tensors, file, {"format": "pt"})


def another_scale(out: Path) -> None:
    file = out / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * 1.1}))


def one_module_less(out: Path) -> None:
    file = out / "adapter_model.safetensors"
    tensors = load_file(file)
    lost = [name for name in tensors if "layers.1" in name]
    save_file({n: v for n, v in tensors.items() if n not in lost}, file, {"format": "pt"})


SPOILT = (
    ("merge", {"weights": [0.5]}, half_of_the_weights),
    ("combine", SUM, another_scale),
    ("resize", {"rank": None, "base": False}, one_module_less),
    ("convert", {"way": "peft", "base": False}, another_scale),
)


@pytest.mark.parametrize(("verb", "options", "spoil"), SPOILT, ids=lambda given: str(given)[:8])
def test_a_spoilt_product_is_found(
    verb: str,
    options: dict[str, Any],
    spoil: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = llama(verb, **options)
    assert outcome_of(case, tmp_path / "sound", PLAIN).outcome == "agreed"
    original = getattr(adaptool, verb)

    def spoilt(*args: Any, **given: Any) -> Any:
        result = original(*args, **given)
        spoil(result.out)
        return result

    monkeypatch.setattr(adaptool, verb, spoilt)
    assert outcome_of(case, tmp_path / "spoilt", PLAIN).outcome == "wrong"
