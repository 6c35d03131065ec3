"""Keys of adapters for diffusion pipelines that keep the dots: a module's path and an ending.

Trainers agree on neither; a file is a prefix, a namespace and a set of endings chosen independently
of each other. Here the endings are read, whoever wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.layouts.lycoris_keys import LYCORIS_ENDINGS
from adaptool.store.tensors import TensorRef

# `.weight` of LyCORIS' IA3 is any tensor's ending where names keep their dots.
_IA3 = frozenset({"gain", "on_input"})
ENDINGS: Mapping[str, str] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.bias": "difference",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    **{f".{end}": role for end, role in LYCORIS_ENDINGS.items() if role not in _IA3},
}
"""Ending -> role; `down` and `up` are A and B, the others LyCORIS' but PEFT's `magnitude`."""

# PEFT's adapter name, where a trainer dumped the model as it was.
_NAMED = re.compile(r"\.(lora_[AB]|lora_magnitude_vector)\.default(?:_\d+)?(?=\.|$)")
# Attention processors of diffusers before 0.18 had no modules of their own for their factors.
_OLD_OUTPUT = re.compile(r"\.to_out$")


@dataclass(frozen=True, slots=True)
class Stem:
    """One module as its file names it: diffusers' name of the component, path, tensors by role."""

    component: str
    path: str
    roles: Mapping[str, TensorRef] = field(default_factory=dict)


_ALL_ENDINGS = tuple(ENDINGS)
Split = Callable[[str], tuple[str, str] | None]
"""The layout's own part: a key without its ending -> (component, path); None where not its."""


def ending_of(key: str) -> tuple[str, str] | None:
    """`a.b.lora_A.weight` -> (`a.b`, `down`); None where no ending is known."""
    plain = _NAMED.sub(r".\1", key) if ".default" in key else key
    if not plain.endswith(_ALL_ENDINGS):
        return None
    for ending, role in ENDINGS.items():
        if plain.endswith(ending) and len(plain) > len(ending):
            path = plain.removesuffix(ending)
            return (_old_path(path) if ending[0] == "_" else path.replace(".processor.", "."), role)
    return None


def _old_path(path: str) -> str:
    return _OLD_OUTPUT.sub(".to_out.0", path.replace(".processor.", "."))


def stems_of(
    tensors: Mapping[str, TensorRef], split: Split
) -> tuple[tuple[Stem, ...], tuple[TensorRef, ...]]:
    """The file's modules in order, and the tensors that are none; InputError for a key twice."""
    found: dict[tuple[str, str], dict[str, TensorRef]] = {}
    leftover = []
    for key, ref in tensors.items():
        ended = ending_of(key)
        placed = split(ended[0]) if ended else None
        if ended is None or placed is None:
            leftover.append(ref)
            continue
        roles = found.setdefault(placed, {})
        if ended[1] in roles:
            message = f"names the same place as {roles[ended[1]].name!r}"
            raise InputError(message, code=Code.SLOT_TAKEN_TWICE, file=ref.file, tensor=key)
        roles[ended[1]] = ref
    stems = tuple(Stem(component, path, roles) for (component, path), roles in found.items())
    return stems, tuple(leftover)


def claimed(keys: Iterable[str], split: Split) -> tuple[int, tuple[str, ...]]:
    """How many keys a layout accounts for, and the others."""
    names = list(keys)
    others = tuple(name for name in names if not _is_claimed(name, split))
    return len(names) - len(others), others


def _is_claimed(key: str, split: Split) -> bool:
    ended = ending_of(key)
    return ended is not None and split(ended[0]) is not None
