"""The base of a case: built, written to disk in one of several ways, and loaded again."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from campaign.architectures import build, kind_of
from campaign.drawing import Case
from campaign.forwards import answer

Tensors = dict[str, torch.Tensor]


class Void(Exception):
    """The case says nothing: the reference itself fails; the text is the reason that is counted."""


class Base:
    """A base on disk and what transformers makes of it.

    `fresh` is a new model of it; `apart` one whose tied parameters are copies of each other, so
    that a merge into one side leaves the other.
    """

    def __init__(self, case: Case, path: Path) -> None:
        self.path = path
        self.kind = kind_of(case.architecture)
        write(case, path)
        self.loaded, self.problems = load(self.kind, path)
        self.answer = answer(self.loaded)
        if not torch.isfinite(self.answer).all():
            raise Void("base is not finite")
        self.state = state_of(self.loaded)

    def fresh(self, vocabulary: int | None = None) -> Any:
        """A copy of the loaded model, resized to `vocabulary`."""
        model = deepcopy(self.loaded)
        if vocabulary is not None:
            torch.manual_seed(11)
            model.resize_token_embeddings(vocabulary)
        return model

    def apart(self, vocabulary: int | None = None) -> Any:
        """The same without shared parameters."""
        return untied(self.fresh(vocabulary))


def load(kind: Any, path: Path) -> tuple[Any, set[str]]:
    """The model at `path` in float32, and the keys that its class missed or did not expect."""
    torch.manual_seed(3)
    model, report = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    found = {
        f"{what} {key}"
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in report[what]
    }
    return model.eval(), found


def untied(model: Any) -> Any:
    """`model`, every shared parameter replaced by a copy but for its first place."""
    seen: set[int] = set()
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) in seen:
            where, _, last = name.rpartition(".")
            owner = model.get_submodule(where)
            setattr(owner, last, torch.nn.Parameter(parameter.detach().clone()))
        seen.add(id(parameter))
    return model


def tied_groups(model: Any) -> list[list[str]]:
    """Names of parameters that are one tensor."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def state_of(model: Any) -> Tensors:
    """Every parameter and buffer, in copies."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def write(case: Case, path: Path) -> None:
    """The base of the case as its storage says."""
    wrong = case.storage == "wrongly tied"
    model: Any = build(case.architecture, tie=False if wrong else case.tie, seed=case.seed % 997)
    size = {"max_shard_size": "20KB"} if case.storage == "shards" else {}
    model.save_pretrained(path, **size)
    if wrong:
        _claim_tie(path / "config.json")
    if case.storage == "module names":
        shared = {name for group in tied_groups(model) for name in sorted(group)[1:]}
        tensors = {
            name: value.contiguous()
            for name, value in model.state_dict().items()
            if name not in shared
        }
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        if not _same(model, load(type(model), path)[0]):
            raise Void("transformers does not read module names")
    if case.storage == "reordered":
        _reorder(path / "model.safetensors", case.seed)


def _same(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def _claim_tie(path: Path) -> None:
    config = json.loads(path.read_text())
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            part["tie_word_embeddings"] = True
    path.write_text(json.dumps(config))


def _reorder(path: Path, seed: int) -> None:
    """The same tensors in another order: safetensors' own writer always sorts."""
    tensors = load_file(path)
    names = sorted(tensors)
    random.Random(seed).shuffle(names)
    header: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
    at, parts = 0, []
    kinds = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL", torch.int32: "I32"}
    for name in names:
        value = tensors[name]
        data = value.contiguous().view(-1).numpy().tobytes()
        header[name] = {
            "dtype": kinds[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [at, at + len(data)],
        }
        at += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
