"""The two checkpoints of an extraction, parameter by parameter, tied weights under each name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptool.errors import AdaptoolError, MismatchError, gathered
from adaptool.findings import Code
from adaptool.model.reading import is_allowed
from adaptool.names.model_names import ModelNames
from adaptool.ops import ties
from adaptool.ops.drafts import Draft
from adaptool.ops.module_tensors import ModuleTensors, module_tensors
from adaptool.store.checkpoint import Checkpoint
from adaptool.store.tensors import TensorRef

# The two modules that PEFT ties for `ensure_weight_tying`, whatever the family.
_TIED_BY_PEFT = ("embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class Sides:
    """Base and tuned model: each parameter's two tensors, by its name in the library's model.

    `shared` are parameters that are one tensor in the base and in the tuned model, the one that
    is stored first; `stored` those that have only their checkpoint's name; `dropped` what only one
    side has and the caller let go; `flipped` stacks that are stored (experts, in, out) though the
    module has them otherwise.
    """

    names: ModelNames
    tensors: Mapping[str, tuple[TensorRef, TensorRef]]
    shared: tuple[str, ...]
    stored: frozenset[str]
    dropped: tuple[str, ...] = ()
    flipped: frozenset[str] = frozenset()

    def is_tied_by_peft(self) -> bool:
        """Whether PEFT keeps the tie itself where it is asked to."""
        return len(self.shared) == len(_TIED_BY_PEFT) and all(
            f".{name}".endswith(f".{ending}")
            for name, ending in zip(self.shared, _TIED_BY_PEFT, strict=True)
        )

    def inside(self, module: str) -> Iterator[str]:
        """The parameters of a module and of what is in it."""
        return (name for name in self.tensors if name.startswith(f"{module}."))


def sides_of(base: Checkpoint, tuned: Checkpoint, allow_drop: Sequence[str] = ()) -> Sides:
    """Both, paired; what only one has is left out where a glob of `allow_drop` matches its name.

    MismatchError (exit 4), carrying every other misfit, where they are of two models.
    """
    old, new = module_tensors(base), module_tensors(tuned)
    ours, theirs = _tied(old, base.config), _tied(new, tuned.config)
    found: dict[str, tuple[TensorRef, TensorRef]] = {}
    errors: list[AdaptoolError] = []
    dropped: list[str] = []
    for name in dict.fromkeys((*new.tensors, *old.tensors)):
        before = _value(name, old, ours)
        after = _value(name, new, theirs)
        if before is not None and after is not None:
            found[name] = before, after
        elif is_allowed(name, allow_drop):
            dropped.append(name)
        else:
            errors.append(_one_sided(name, base, tuned, in_base=before is not None))
    if errors:
        raise gathered(errors)
    one = {stored: (stored, *names) for stored, names in _shared(ours, old).items()}
    other = _shared(theirs, new)
    shared = next((each for stored, each in one.items() if stored in other), ())
    for name in shared[1:]:
        found.setdefault(name, found[shared[0]])
    stored = old.stored | new.stored
    return Sides(old.names, found, shared, stored, tuple(sorted(dropped)), old.flipped)


def _value(name: str, side: ModuleTensors, tied: Mapping[str, str]) -> TensorRef | None:
    found = side.tensors.get(name)
    return found if found is not None else side.tensors.get(tied.get(name, ""))


def _shared(tied: Mapping[str, str], side: ModuleTensors) -> dict[str, list[str]]:
    """The other names of each stored matrix that is tied."""
    found: dict[str, list[str]] = {}
    for name, stored in tied.items():
        if name not in side.tensors and len(side.tensors[stored].shape) > 1:
            found.setdefault(stored, []).append(name)
    return found


def _tied(side: ModuleTensors, config: Mapping[str, Any] | None) -> dict[str, str]:
    """By name: the stored parameter that it is another name of."""
    drafts = {name: Draft(name, ref, None, ref.dtype) for name, ref in side.tensors.items()}
    found: dict[str, str] = {}
    for group in ties.find(drafts, config).groups:
        found |= {name: group.first for name in group.names if name != group.first}
    return found


def _one_sided(name: str, base: Checkpoint, tuned: Checkpoint, *, in_base: bool) -> AdaptoolError:
    here, there = (base, tuned) if in_base else (tuned, base)
    message = f"is not in {there.name}"
    hint = f"both must be checkpoints of one model; --allow-drop {name!r} leaves it out"
    return MismatchError(
        message, code=Code.MODULE_NOT_IN_BASE, file=here.name, tensor=name, hint=hint
    )
