"""What `validate --target diffusers` says of names is what diffusers' pipelines do with them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_pipeline

from adaptool.names.diffusion import Family, Rule, families
from adaptool.names.templates import filled
from adaptool.runtimes.diffusers_names import fate_of

MIXINS = {
    "sd": "StableDiffusionLoraLoaderMixin",
    "sdxl": "StableDiffusionXLLoraLoaderMixin",
    "flux": "FluxLoraLoaderMixin",
    "flux2": "Flux2LoraLoaderMixin",
    "sd3": "SD3LoraLoaderMixin",
    "qwen-image": "QwenImageLoraLoaderMixin",
    "z-image": "ZImageLoraLoaderMixin",
    "lumina2": "Lumina2LoraLoaderMixin",
    "wan": "WanLoraLoaderMixin",
    "hunyuan-video": "HunyuanVideoLoraLoaderMixin",
    "anima": "AnimaLoraLoaderMixin",
}
# Converters have the sizes of these models built in.
WIDTHS = {"flux": 3072, "hunyuan-video": 3072, "lumina2": 2304}
# Layers that no trainer adapts with factors: norms, and what only some variants have, or in pairs.
NO_LINEAR = re.compile(
    r"norm|\bln_[qk]|layers\.0$|out\.0$|cap_embedder\.0|processor|distilled|img_emb\.proj\.[04]$|_img$"
)
A_B, DOWN_UP = ("lora_A", "lora_B"), ("lora_down", "lora_up")
SPELLINGS = {
    "comfyui": ("diffusion_model.{original}", A_B),
    "comfyui, kohya's endings": ("diffusion_model.{original}", DOWN_UP),
    "kohya": ("lora_unet_{original_}", DOWN_UP),
    "kohya, diffusers' names": ("lora_unet_{module_}", DOWN_UP),
    "OneTrainer": ("lora_transformer_{module_}", DOWN_UP),
    "LyCORIS": ("lycoris_{module_}", DOWN_UP),
    "the checkpoint's names": ("{original}", A_B),
    "diffusers' names, prefixed": ("diffusion_model.{module}", DOWN_UP),
    "diffusers": ("{component}.{module}", A_B),
}


class Sizes(dict[str, int]):
    """The part of a UNet's config that its loader asks for."""

    layers_per_block = 2


def _rules(family: Family) -> Iterator[Rule]:
    seen: set[str] = set()
    # A UNet's levels are alike, all ways of naming a module are among every seventh.
    rules = family.rules[::7] if family.component == "unet" else family.rules
    for rule in rules:
        known = rule.scale or NO_LINEAR.search(rule.original) or seen & set(rule.modules)
        if not known:
            seen.update(rule.modules)
            yield rule


def _tensors(family: Family, rule: Rule, spelling: str) -> dict[str, torch.Tensor]:
    """Factors of zeros for one line of the table, in block 0."""
    form, ends = SPELLINGS[spelling]
    numbers = ["0"] * rule.original.count("#")
    original = filled(rule.original, numbers)
    modules = [filled(module, numbers) for module in rule.modules]
    width = WIDTHS.get(family.name, 8)
    out = sum(rule.shares) * width
    if family.name == "lumina2" and rule.original.endswith("qkv"):
        out = 2304 + 768 + 768
    elif rule.ratio is not None:
        out = width * rule.ratio[0] // rule.ratio[1]
    found: dict[str, torch.Tensor] = {}
    for module in modules if "module" in form else modules[:1]:
        names = {"original": original, "module": module, "component": family.component}
        flat = {f"{key}_": name.replace(".", "_") for key, name in names.items()}
        stem = form.format(**names, **flat)
        rows = out // len(modules) if "module" in form else out
        found[f"{stem}.{ends[0]}.weight"] = torch.zeros(2, width)
        found[f"{stem}.{ends[1]}.weight"] = torch.zeros(rows, 2)
        if ends is DOWN_UP:
            found[f"{stem}.alpha"] = torch.tensor(2.0)
    return found


def _converted(family: Family, tensors: dict[str, torch.Tensor]) -> frozenset[str] | None:
    """The modules that the pipeline would look for in its model; None where it raises."""
    mixin: Any = getattr(lora_pipeline, MIXINS[family.name])
    unet = {"unet_config": Sizes()} if family.component == "unet" else {}
    try:
        given = mixin.lora_state_dict(dict(tensors), **unet)
    except (KeyError, ValueError, IndexError, RuntimeError):
        return None
    state = given[0] if isinstance(given, tuple) else given
    if not all("lora" in name for name in state):
        return None  # what load_lora_weights raises on
    prefix = f"{family.component}."
    names = (name.removeprefix(prefix) for name in state if name.startswith(prefix))
    return frozenset(_module(name) for name in names)


def _module(name: str) -> str:
    module = re.split(r"\.lora[._]|_lora\.|\.alpha$", name)[0]
    plain = module.replace(".processor", "")
    return f"{plain}.0" if plain != module and plain.endswith("to_out") else plain


def _said(family: Family, tensors: dict[str, torch.Tensor], more: dict[str, torch.Tensor]) -> str:
    fate = fate_of(tensors.keys() | more.keys(), family.name)
    if set(fate.refused) & more.keys():
        return "refused"
    return "lost" if set(fate.lost) & more.keys() else "read"


def _seen(family: Family, rule: Rule, tensors: dict[str, torch.Tensor]) -> str:
    found = _converted(family, tensors)
    if found is None:
        return "refused"
    numbers = ["0"] * rule.original.count("#")
    return "read" if {filled(name, numbers) for name in rule.modules} <= found else "lost"


def _beside(family: Family, spelling: str) -> dict[str, torch.Tensor]:
    """Modules that are always there: what some converters need of a block, or one attention."""
    every = [rule for rule in _rules(family) if re.search(r"attn|attention", rule.original)]
    if family.name in ("wan", "lumina2"):
        whole = re.compile(r"(self|cross)_attn\.[qkvo]$|ffn|^layers")
        every = [rule for rule in _rules(family) if whole.search(rule.original)]
    else:
        every = every[:1]
    return {
        name: value for rule in every for name, value in _tensors(family, rule, spelling).items()
    }


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", MIXINS)
def test_fate_of_each_module_is_what_diffusers_does(
    name: str, spelling: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Read, left alone or raised on: module by module, beside an attention or a whole block."""
    caplog.set_level(logging.CRITICAL)
    family = families()[name]
    beside = _beside(family, spelling)
    wrong = {}
    for rule in _rules(family):
        more = _tensors(family, rule, spelling)
        seen = _seen(family, rule, beside | more)
        said = _said(family, beside, more)
        if said != seen:
            wrong[rule.original] = (said, seen)
    assert wrong == {}


def test_half_a_block_is_refused_where_the_converter_needs_a_whole_one() -> None:
    """Wan's and Lumina2's look for every projection of a block of which they see one."""
    cases = ("wan", "kohya", "self_attn"), ("lumina2", "comfyui", "^layers.*attention")
    for name, spelling, part in cases:
        family = families()[name]
        some = [rule for rule in _rules(family) if re.search(part, rule.original)]
        tensors = {
            key: value for rule in some for key, value in _tensors(family, rule, spelling).items()
        }
        assert _converted(family, tensors) is None
        assert set(fate_of(tensors.keys(), name).refused) == tensors.keys()


def test_unets_tenth_block_is_taken_for_the_first() -> None:
    """SD 1 under the checkpoint's names: the converter raises as soon as both are there."""
    family = families()["sd"]
    blocks = ("input_blocks.1.0.in_layers.2", "input_blocks.10.0.in_layers.2")
    rules = [rule for rule in family.rules if rule.original in blocks]
    tensors = {
        key: value for rule in rules for key, value in _tensors(family, rule, "kohya").items()
    }
    assert _converted(family, tensors) is None
    assert set(fate_of(tensors.keys(), "sd").refused) == tensors.keys()
