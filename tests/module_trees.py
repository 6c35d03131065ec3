"""Models made of tensor names alone: the modules that a checkpoint's names speak of.

Under transformers 4 and in diffusers the modules have the names that lie on disk, so adapters of
that era, or of a library that is not installed, can be made by PEFT on such a tree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_EMBEDDING = re.compile(
    r"(^|.*[._])(embed|embeddings?|wte|wpe|shared|embed_(tokens|positions|in)|relative_attention_bias"
    r"|pos_embed|class_embedding)"
)


def tree(shapes: Mapping[str, Sequence[int]], *, conv1d: bool = False) -> nn.Module:
    """A module for each tensor name, zero weights; `conv1d`: matrices are stored (in, out)."""
    root = nn.Module()
    for name in sorted(shapes):
        module, _, leaf = name.rpartition(".")
        shape = tuple(shapes[name])
        parent = _parent(root, module)
        last = module.rpartition(".")[2]
        if leaf == "weight" and len(shape) in (2, 4) and not _EMBEDDING.fullmatch(module):
            bias = f"{module}.bias" in shapes
            parent._modules[last] = _layer(shape, bias=bias, conv1d=conv1d)  # noqa: SLF001 - a tree
        elif not isinstance(_at(root, module), nn.Linear | nn.Conv2d | Conv1D):
            holder = _parent(root, f"{module}.x" if module else "x")
            holder.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))
    return root


def linears(model: nn.Module) -> list[str]:
    """Paths of the linear layers."""
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    ]


def _layer(shape: tuple[int, ...], *, bias: bool, conv1d: bool) -> nn.Module:
    if len(shape) == 4:
        out, inner, height, width = shape
        return nn.Conv2d(inner, out, (height, width), bias=bias)
    if conv1d:
        return Conv1D(shape[1], shape[0])
    return nn.Linear(shape[1], shape[0], bias=bias)


def _parent(root: nn.Module, path: str) -> nn.Module:
    found = root
    for part in path.split(".")[:-1]:
        if part not in found._modules:  # noqa: SLF001 - numbered children have no attribute syntax
            found.add_module(part, nn.Module())
        inner = found._modules[part]  # noqa: SLF001
        assert inner is not None
        found = inner
    return found


def _at(root: nn.Module, path: str) -> nn.Module | None:
    found: nn.Module | None = root
    for part in path.split(".") if path else ():
        found = found._modules.get(part) if found is not None else None  # noqa: SLF001
    return found
