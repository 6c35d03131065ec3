"""PEFT as the judge of an adapter: what it makes of a base's weights, with nothing left over."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import nn

from family_models import FAMILIES, build
from golden_cases import quietly, train

Tensors = Mapping[str, torch.Tensor]


def save_base(family: str, where: Path, *, untied: bool = False) -> Path:
    """The family's small model, random, under its checkpoint's names."""
    found = FAMILIES[family]
    if untied:
        found = replace(found, settings=_untied(found.settings))
    build(found).save_pretrained(where)
    return where


def _untied(settings: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        key: {**value, "tie_word_embeddings": False}
        for key, value in settings.items()
        if key == "text_config"
    }
    return {**settings, **inner, "tie_word_embeddings": False}


def load(family: str, where: Path) -> nn.Module:
    """The family's model with the weights at `where`, in eval mode and float32."""
    kind = getattr(transformers, FAMILIES[family].kind)
    with quietly():
        model: nn.Module = kind.from_pretrained(where, dtype=torch.float32).eval()
    return model


def trained(family: str, base: Path, where: Path, config: Any, seed: int = 7) -> Path:
    """An adapter that PEFT made and saved."""
    with quietly():
        model = get_peft_model(load(family, base), config)
        train(model, seed)
        model.save_pretrained(where, save_embedding_layers=False)
    return where


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every floating tensor of the model."""
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if value.is_floating_point()
    }


def under(family: str, base: Path, adapter: Path, *, whole: bool = True) -> dict[str, torch.Tensor]:
    """The base's weights as PEFT changes them by the adapter.

    AssertionError where PEFT makes modules that the file has no keys for; not `whole`: they are 0.
    """
    with _no_missing_keys() if whole else quietly():
        model = PeftModel.from_pretrained(load(family, base), adapter)
        return weights(model.merge_and_unload())


def furthest(found: Tensors, wanted: Tensors, base: Tensors) -> float:
    """The largest error, relative to the largest change that is wanted."""
    change = max((wanted[name] - base[name]).abs().max() for name in wanted)
    error = max((found[name] - wanted[name]).abs().max() for name in wanted)
    return float(error / change)


@contextmanager
def _no_missing_keys() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = [str(each.message) for each in caught]
    assert [text for text in said if "missing adapter keys" in text] == []
