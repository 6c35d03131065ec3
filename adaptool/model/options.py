"""What a command was asked to do: one frozen dataclass per operation, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from numbers import Real
from pathlib import Path
from typing import Any, Self, TypeGuard, TypeVar

from adaptool.errors import UsageError
from adaptool.findings import Code


class Precision(StrEnum):
    """The arithmetic of a merge."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"


class OutputDtype(StrEnum):
    """The dtype of the tensors written; `keep` is the base's, per tensor."""

    KEEP = "keep"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Tie(StrEnum):
    """What to do where an adapter changes one side of tied weights."""

    UNTIE = "untie"
    KEEP = "keep"
    ERROR = "error"


class ExpertPacking(StrEnum):
    """The order of lora_B's columns where experts are stacked; shapes do not tell.

    PEFT: rank by rank, the expert fastest. Unsloth before 2026.9.6: expert by expert.
    Source: PEFT 0.21.2 `ParamWrapper.get_delta_weight`; unsloth-zoo pull request 1269.
    """

    PEFT = "peft"
    UNSLOTH = "unsloth"


class QloraBase(StrEnum):
    """Which weights an adapter was trained on: the 16-bit ones, or what nf4 makes of them."""

    ORIGINAL = "original"
    DEQUANTIZED = "dequantized"


class Quantized(StrEnum):
    """What to write of a quantized base."""

    ALL = "all"
    TOUCHED = "touched"
    KEEP = "keep"


def is_finite(value: object) -> TypeGuard[Real]:
    """Whether `value` is a finite number; True and False are none, text is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False


@dataclass(frozen=True, slots=True)
class Machine:
    """What does the work: never part of the result's bytes."""

    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse a thread count below 1."""
        if self.threads is not None and self.threads < 1:
            message = f"{self.threads} threads asked for; at least 1 is needed"
            raise UsageError(message, code=Code.USAGE, field="--threads")


@dataclass(frozen=True, slots=True)
class Strength:
    """One adapter of a merge and how much of it: `W + weight * (f(W) - W)`."""

    path: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a weight that is no finite number."""
        if not is_finite(self.weight):
            message = f"a weight must be a finite number, not {self.weight!r}"
            raise UsageError(message, code=Code.USAGE, field="--weight")


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """The switches of a merge that decide its bytes."""

    dtype: OutputDtype = OutputDtype.KEEP
    precision: Precision = Precision.FLOAT64
    max_shard_size: int | None = None
    tie: Tie = Tie.UNTIE
    quantized: Quantized = Quantized.ALL
    qlora_base: QloraBase = QloraBase.ORIGINAL
    expert_packing: ExpertPacking = ExpertPacking.PEFT
    alpha: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    skip_unmatched: bool = False
    allow_drop: tuple[str, ...] = ()
    allow_lossy: bool = False

    def given(self, **values: Any) -> Self:  # noqa: ANN401 - as flags, keywords or JSON give them
        """These options with every value that is not None, read as its option's own kind.

        UsageError for a word that the option does not know.
        """
        kinds = {name: _like(name, getattr(self, name), values[name]) for name in values}
        return replace(self, **{name: kind for name, kind in kinds.items() if kind is not None})

    def as_json(self) -> dict[str, Any]:
        """Every option by name, as a receipt records it and `given` reads it back."""
        return {
            option.name: list(value) if isinstance(value, tuple) else value
            for option in fields(self)
            for value in [getattr(self, option.name)]
        }


def _like(name: str, current: object, value: Any) -> Any:  # noqa: ANN401 - see `given`
    if isinstance(current, tuple) and value is not None:
        return tuple(value)
    if isinstance(current, StrEnum) and value is not None:
        return chosen(type(current), value, f"--{name.replace('_', '-')}")
    return value


Kind = TypeVar("Kind", bound=StrEnum)


def chosen(kinds: type[Kind], value: str, flag: str) -> Kind:
    """The kind that `value` names; UsageError where it names none."""
    known = [str(kind) for kind in kinds]
    if value not in known:
        message = f"{value!r} is none of {', '.join(known)}"
        raise UsageError(message, code=Code.USAGE, field=flag)
    return kinds(value)
