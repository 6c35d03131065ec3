"""One module under several names is one module, in adapter space too; PEFT is the judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import adaptool
from adaptool.errors import MismatchError
from adaptool.findings import Code
from peft_judge import furthest, load, save_base, trained, under, weights

ROUNDING = 2e-5
PREFIX = "base_model.model."
# How releases of transformers before 5 called what is now the second.
OLD_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(
        ("llava", "llava_next", "llava_onevision", "gemma3", "paligemma", "mllama", "mistral3"),
        (("language_model.model.", "model.language_model."),),
    ),
    "internvl": (("language_model.model.", "model.language_model."),),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), (("model.", "model.language_model."),)),
    "vit": (
        ("vit.encoder.layer.0.attention.attention.query", "vit.layers.0.attention.q_proj"),
        ("vit.encoder.layer.1.attention.attention.query", "vit.layers.1.attention.q_proj"),
        ("vit.encoder.layer.0.attention.attention.value", "vit.layers.0.attention.v_proj"),
        ("vit.encoder.layer.1.attention.attention.value", "vit.layers.1.attention.v_proj"),
    ),
}
FAST = ("llava", "qwen2_vl")
FAMILY = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in OLD_NAMES
]


@dataclass(frozen=True, slots=True)
class Made:
    """A family's base and two adapters, under the current names."""

    family: str
    base: Path
    first: Path
    second: Path


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The family's; of a multimodal model the text model is trained."""
    family = str(request.param)
    root = tmp_path_factory.mktemp(family)
    base = save_base(family, root / "base")
    inside = ".*" if family == "vit" else ".*language_model.*"
    first = LoraConfig(r=2, lora_alpha=4, target_modules=f"{inside}(q_proj|v_proj)")
    second = LoraConfig(r=3, lora_alpha=4, target_modules=f"{inside}(q_proj|down_proj)")
    a = trained(family, base, root / "a", first, seed=1)
    return Made(family, base, a, trained(family, base, root / "b", second, seed=2))


def _under_old_names(family: str, adapter: Path, where: Path) -> Path:
    """The adapter as an older release saved it, its targets by their last names."""

    def old(name: str) -> str:
        for before, now in OLD_NAMES[family]:
            if name.startswith(PREFIX + now):
                return PREFIX + before + name.removeprefix(PREFIX + now)
        return name

    return _rewritten(adapter, where, old)


def _rewritten(adapter: Path, where: Path, rename: Callable[[str], str]) -> Path:
    shutil.copytree(adapter, where)
    tensors = load_file(where / "adapter_model.safetensors")
    assert {rename(name) for name in tensors} != set(tensors)
    renamed = {rename(name): value for name, value in tensors.items()}
    save_file(renamed, where / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((where / "adapter_config.json").read_text())
    last = {name.partition(".lora_")[0].rpartition(".")[2] for name in renamed}
    config["target_modules"] = sorted(last)
    (where / "adapter_config.json").write_text(json.dumps(config))
    return where


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "base"])
@pytest.mark.parametrize("made", FAMILY, indirect=True)
def test_peft_applies_the_sum_of_adapters_under_old_and_new_names(
    made: Made, beside: bool, tmp_path: Path
) -> None:
    """In both orders: W + dA + dB, by PEFT's own reading of A and B under the names it saved."""
    family, base, a, b = made.family, made.base, made.first, made.second
    old = _under_old_names(family, b, tmp_path / "old")
    plain, one, other = weights(load(family, base)), under(family, base, a), under(family, base, b)
    wanted = {name: one[name] + other[name] - value for name, value in plain.items()}
    for number, pair in enumerate(((a, old), (old, a))):
        out = tmp_path / f"sum{number}"
        adaptool.combine(*pair, out=out, base=base if beside else None)
        assert furthest(under(family, base, out, whole=False), wanted, plain) < ROUNDING


@pytest.mark.parametrize("made", FAMILY, indirect=True)
def test_an_adapter_under_two_namings_does_not_differ(made: Made, tmp_path: Path) -> None:
    """Module by module, with nothing left on either side."""
    base, b = made.base, made.second
    old = _under_old_names(made.family, b, tmp_path / "old")
    for beside in (None, base):
        found = adaptool.diff(b, old, base=beside)
        assert (found.relative_error, found.only_in_a, found.only_in_b) == (0.0, (), ())


@pytest.mark.parametrize("made", ["llava"], indirect=True)
def test_names_that_nothing_decides_are_refused_without_a_base(made: Made, tmp_path: Path) -> None:
    """`module.` before a name is a wrapper's, or a module of the model: the base tells."""
    base, a, b = made.base, made.first, made.second
    other = _rewritten(b, tmp_path / "x", lambda name: name.replace(PREFIX, f"{PREFIX}module.", 1))
    for verb in (adaptool.diff, lambda *pair: adaptool.combine(*pair, out=tmp_path / "out")):
        with pytest.raises(MismatchError) as refused:
            verb(a, other)
        assert refused.value.code is Code.SHAPE_AMBIGUOUS
        assert "--base" in (refused.value.hint or "")
    assert adaptool.diff(b, other, base=base).relative_error == 0.0
