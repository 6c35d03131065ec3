"""An adapter, in delta space: it can be decoded from any layout and knows no base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from adaptool.dtypes import Dtype
from adaptool.findings import Finding
from adaptool.store.tensors import TensorRef

UNKNOWN_SCALE = math.nan
"""The scaling of an adapter whose file does not say it, where it is only described."""


class Form(StrEnum):
    """What kind of parameter a delta belongs to; decides how it may lie in the base tensor."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    CONVOLUTION = "convolution"
    EXPERTS = "experts"
    VECTOR = "vector"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a tuner reads from config and shapes, before any tensor is loaded.

    `out` x `inner` is the delta as a matrix (for a convolution `inner` is in * kernel, for stacked
    experts one expert's); 0 is a size that stands in no tensor, which the base's shape decides.
    `kernel` is the convolution's trailing axes; `experts` how many matrices are stacked (0: not
    stacked). `scaling` multiplies the product of the factors. `conventions` are the tuner's own
    switches, JSON-able.
    """

    form: Form
    out: int
    inner: int
    scaling: float
    rank: int | None = None
    alpha: float | None = None
    kernel: tuple[int, ...] = ()
    experts: int = 0
    conventions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_scaled(self) -> bool:
        """Whether the scaling is known; only an adapter that is merely described may lack it."""
        return not math.isnan(self.scaling)

    @property
    def sized(self) -> bool:
        """Whether both sizes are known."""
        return bool(self.out and self.inner)


@dataclass(frozen=True, slots=True)
class Delta:
    """One module's update: a tuner, its factors by role name, and the terms they are used on.

    `parameter` is the name the update belongs to, as the training library's module names it
    (`model.layers.0.mlp.up_proj.weight`); `module` is what stands in the file's keys. `dtype` is
    what factors that are computed are written in; None: each in its own. `shared` are the roles
    whose tensors are another delta's as well, which counts them: every module's, or the weight's.
    An `optional` delta changes a parameter that the base may lack, and then there is nothing to
    change. `reads` are roles that the base fills, not the adapter: role -> parameter.
    """

    module: str
    parameter: str
    tuner: str
    roles: Mapping[str, TensorRef]
    terms: Terms
    dtype: Dtype | None = None
    shared: frozenset[str] = frozenset()
    optional: bool = False
    reads: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of elements that are this module's own."""
        return sum(ref.elements for role, ref in self.roles.items() if role not in self.shared)


@dataclass(frozen=True, slots=True)
class Replaced:
    """A whole tensor that the adapter carries: modules_to_save, a bias, a copy of the base.

    `rows` is set for trained token rows: row k of `value` replaces row `rows[k]`.
    `copied_base` marks a `.base_layer.` copy, which a merge may find equal to the base. `dtype` is
    what a computed value is written in; None: its own. `tuner` is the one that trained it, where
    that is what the tuner does (LN tuning).
    """

    parameter: str
    value: TensorRef
    rows: tuple[int, ...] | None = None
    copied_base: bool = False
    saved_module: bool = False
    tuner: str = ""
    dtype: Dtype | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A decoded adapter; every tensor of its file has one place in it.

    That is `deltas`, `replaced`, `leftover`, or `dropped`: left out because the caller allowed it.
    `changed_base` names an initialisation that subtracted the initial delta from the base before
    training: the trained delta alone is then not the update. `metadata` is the file's own, where
    its layout keeps more there than what is decoded. `architectures` are the denoisers of diffusion
    that it may be for, decided when it was read: one, or several that name its modules alike.
    """

    name: str
    layout: str
    config: Mapping[str, Any]
    deltas: tuple[Delta, ...]
    replaced: tuple[Replaced, ...]
    leftover: tuple[TensorRef, ...]
    tensors: Mapping[str, TensorRef]
    findings: tuple[Finding, ...]
    base: str | None = None
    layer_replication: tuple[tuple[int, int], ...] = ()
    keeps_ties: bool = False
    fan_in_fan_out: bool | None = None
    dropped: tuple[str, ...] = ()
    changed_base: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    architectures: tuple[str, ...] = ()
