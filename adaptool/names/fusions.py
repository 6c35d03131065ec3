"""Modules that one library stores apart and another fused, whatever the model family.

Each record: the members in the order in which the fused tensor holds them, and the names that the
fused module goes by. Source: the module names of transformers 4 and 5, vLLM's packed modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Families whose fused query_key_value interleaves per head: (head, q/k/v, dim).
PER_HEAD = frozenset({"gpt_neox", "gpt_neox_japanese", "bloom"})
PER_HEAD_NAMES = frozenset({"query_key_value"})
# Families whose fused projection groups heads in a way that a plain slice does not reach.
UNSLICEABLE = frozenset({"falcon", "RefinedWeb", "RefinedWebModel", "gpt_bigcode", "mpt_grouped"})


@dataclass(frozen=True, slots=True)
class Fusion:
    """Members in order, and what the fused module is called."""

    members: tuple[str, ...]
    fused: tuple[str, ...]


FUSIONS = (
    Fusion(
        ("q_proj", "k_proj", "v_proj"),
        ("qkv_proj", "query_key_value", "Wqkv", "c_attn", "W_pack", "qkv", "in_proj"),
    ),
    Fusion(("query", "key", "value"), ("query_key_value", "qkv")),
    Fusion(("q", "k", "v"), ("qkv",)),
    Fusion(("to_q", "to_k", "to_v"), ("to_qkv",)),
    Fusion(("gate_proj", "up_proj"), ("gate_up_proj",)),
    Fusion(("w1", "w3"), ("w13", "gate_up_proj")),
)
# Stacked expert parameters, and the per-expert projections they are made of.
STACKED = (
    Fusion(("gate_proj", "up_proj"), ("gate_up_proj",)),
    Fusion(("w1", "w3"), ("gate_up_proj",)),
    Fusion(("down_proj",), ("down_proj",)),
    Fusion(("w2",), ("down_proj",)),
)


def fused_names(module: str) -> Iterator[tuple[str, Fusion, int]]:
    """Fused siblings of `module`: (path, fusion, place of the module in it)."""
    parent, _, name = module.rpartition(".")
    for fusion in FUSIONS:
        if name in fusion.members:
            for fused in fusion.fused:
                yield _join(parent, fused), fusion, fusion.members.index(name)


def member_names(module: str) -> Iterator[tuple[str, ...]]:
    """The separate siblings that a fused `module` stands for, as paths in order."""
    parent, _, name = module.rpartition(".")
    for fusion in FUSIONS:
        if name in fusion.fused:
            yield tuple(_join(parent, member) for member in fusion.members)


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name
