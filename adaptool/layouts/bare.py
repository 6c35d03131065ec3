"""Pairs without a library: `module.A.weight` and `module.B.weight`, or PEFT's keys unprefixed.

A is (r, in), B (out, r). No scale is stored.
"""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.layouts import Evidence
from adaptool.layouts.pairs import Pairs, Roles, adapter_of, paired
from adaptool.layouts.peft_config import check_config
from adaptool.layouts.plain_deltas import is_embedding, lora_delta, matrix
from adaptool.layouts.told_scale import told_scaling
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

TITLE = "bare pairs"
DETECT = "keys `*.A.weight`, `*.B.weight`, or `model.*.lora_A.weight` without PEFT's prefix"
LOSSY = ""
_HAND_MADE = {".A.weight": "A", ".B.weight": "B"}
_UNPREFIXED = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_A.default.weight": "A",
    ".lora_B.default.weight": "B",
}
# Names of language models: those of diffusion models are another layout's.
_OURS = ("model.", "language_model.", "lm_head", "gpt_neox.", "transformer.h.")


def _found(files: AdapterFiles) -> Pairs:
    made = paired(files.tensors, _HAND_MADE, lambda name: not name.startswith("base_model."))
    rest = {ref.name: ref for ref in made.leftover}
    plain = paired(rest, _UNPREFIXED, _is_ours)
    both = {name: {**plain.modules.get(name, {}), **roles} for name, roles in made.modules.items()}
    return Pairs({**plain.modules, **both}, plain.leftover)


def _is_ours(name: str) -> bool:
    return name.startswith(_OURS) and not name.startswith("model.diffusion_model.")


def sniff(files: AdapterFiles) -> Evidence:
    """Hand-made pairs of any module; PEFT's endings of a language model's modules."""
    found = _found(files)
    unclaimed = tuple(ref.name for ref in found.leftover)
    claimed = len(files.tensors) - len(unclaimed)
    return Evidence(claimed, unclaimed, f"{claimed} keys are pairs without a prefix")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError (with every other problem) where it contradicts itself."""

    def make(name: str, roles: Roles) -> Iterator[Delta]:
        a, b = matrix(roles["A"]), matrix(roles["B"])
        scaling = _scaling(name, a, b, files, reading)
        if is_embedding(name):
            yield lora_delta(name, {"embedding_A": a, "embedding_B": b}, scaling)
        else:
            yield lora_delta(name, {"A": a, "B": b}, scaling)

    return adapter_of(files, reading, _found(files), make, layout="bare")


def _scaling(name: str, a: TensorRef, b: TensorRef, files: AdapterFiles, reading: Reading) -> float:
    """By PEFT's rules where a config of PEFT's lies beside, else as the caller says."""
    config = files.config or {}
    if config.get("peft_type") != "LORA":
        return told_scaling(files, reading, a.shape[0] or 1)
    check_config(config, files.config_file)
    return tuners()["lora"].terms(config, name, {"A": a.shape, "B": b.shape}).scaling
