"""What each adapter adds to which tensor of the base."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

from adaptool.dtypes import DTYPES, Dtype
from adaptool.errors import AdaptoolError, MismatchError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.model.plan import Blend, Piece
from adaptool.model.tuner import Settling
from adaptool.model.view import View
from adaptool.names.families import head_count, key_value_heads, model_types
from adaptool.names.resolver import How, Resolution, Resolver
from adaptool.ops.copies import same_bytes
from adaptool.ops.drafts import Draft, Drafts
from adaptool.ops.replacing import parts_of
from adaptool.ops.rivals import Located, without_rivals
from adaptool.ops.sizes import completed
from adaptool.ops.targets import Base, plausible, views
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

MOST_NAMED = 5


@dataclass(slots=True)
class Ledger:
    """What became of an adapter's tensors: used, or left out with permission."""

    findings: list[Finding] = field(default_factory=list)
    errors: list[AdaptoolError] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    suffixed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Permissions:
    """What may be left out: modules that the base lacks, tensors that match a pattern."""

    skip_unmatched: bool
    allow_drop: tuple[str, ...]

    def drops(self, names: Sequence[str]) -> bool:
        """Whether every name matches a pattern."""
        return bool(names) and all(
            any(fnmatch.fnmatchcase(name, pattern) for pattern in self.allow_drop) for name in names
        )


class Contribution:
    """Puts one adapter's deltas and tensors onto the drafts."""

    def __init__(
        self,
        place: int,
        adapter: Adapter,
        weight: float,
        drafts: Drafts,
        *,
        config: Mapping[str, Any] | None,
        permissions: Permissions,
    ) -> None:
        """`place` is the adapter's position in the list of inputs, `config` the base's."""
        self._place, self._adapter, self._weight = place, adapter, weight
        self._drafts, self._permissions = drafts, permissions
        kinds = model_types(config)
        self._base = Base(_shapes(drafts), kinds, head_count(config), key_value_heads(config))
        self._resolver = Resolver(drafts, kinds)
        self.ledger = Ledger()

    def add(self) -> Ledger:
        """Everything the adapter holds; MismatchError (with all others) for what has no place."""
        # Replaced tensors first: a delta is added to the shape they bring.
        for item in self._adapter.replaced:
            self._try(partial(self._replace, item), [item.value.name])
        self._base = replace(self._base, shapes=_shapes(self._drafts))
        found: list[Located] = []
        for delta in self._adapter.deltas:
            self._try(partial(self._locate, delta, found), _names(delta))
        for located in self._of_one_model(found):
            self._try(partial(self._add_delta, located, found), _names(located.delta))
        if self.ledger.errors:
            raise gathered([self._located(error) for error in self.ledger.errors])
        self._report()
        return self.ledger

    def _of_one_model(self, located: list[Located]) -> list[Located]:
        try:
            left, dropped = without_rivals(located, self._permissions.drops)
        except MismatchError as error:
            self.ledger.errors.append(error)
            return []
        self.ledger.dropped += dropped
        return left

    def _try(self, step: Callable[[], None], names: list[str]) -> None:
        try:
            step()
        except AdaptoolError as error:
            if self._permissions.drops(names):
                self.ledger.dropped += names
            else:
                self.ledger.errors.append(error)

    def _located(self, error: AdaptoolError) -> AdaptoolError:
        if error.file is None:
            error.file = self._adapter.name
        return error

    def _locate(self, delta: Delta, located: list[Located]) -> None:
        """Find the delta's tensors in the base, and the sizes that only those tell."""
        found = self._resolver.resolve(delta.parameter, lambda name: self._fits(delta, name))
        if found is None or (delta.optional and found.how is How.SUFFIX):
            if not delta.optional:
                self._unmatched(delta.parameter, delta.module)
            return
        self._note(found, delta.parameter)
        sized = completed(delta, found, self._base, self._adapter.fan_in_fan_out)
        located.append(Located(sized, found))

    def _settled(self, delta: Delta, located: Sequence[Located]) -> Delta:
        """The delta with what its tuner makes of all sizes, and with what it reads of the base."""
        tuner = tuners()[delta.tuner]
        roles = {**delta.roles, **{role: self._read(name) for role, name in delta.reads.items()}}
        if isinstance(tuner, Settling):
            known = {(entry.delta.module, entry.delta.parameter): entry.delta for entry in located}
            among = [
                known.get((other.module, other.parameter), other)
                for other in self._adapter.deltas
                if other.tuner == delta.tuner
            ]
            delta = replace(delta, terms=tuner.settled(delta, among))
        return replace(delta, roles=roles)

    def _read(self, parameter: str) -> TensorRef:
        """A whole tensor of the base, as it was before any adapter."""
        found = self._resolver.resolve(parameter, lambda _: False)
        if found is None or len(found.placements) != 1 or found.fused or _is_partial(found):
            message = f"the adapter's change depends on {parameter}, which the base has not whole"
            raise MismatchError(message, code=Code.UNSUPPORTED)
        draft = self._drafts[found.placements[0].tensor]
        return draft.original or draft.source

    def _add_delta(self, located: Located, among: Sequence[Located]) -> None:
        delta, found = self._settled(located.delta, among), located.found
        for name, view in views(delta, found, self._base, self._adapter.fan_in_fan_out):
            draft = self._drafts[name]
            self._check(draft, delta, view)
            draft.see_as(view.fold)
            draft.pieces.append(Piece(self._place, delta, view, self._weight))

    def _fits(self, delta: Delta, name: str) -> bool:
        return plausible(delta, self._base.shapes[name])

    def _check(self, draft: Draft, delta: Delta, view: View) -> None:
        _check_dtype(draft)
        if tuners()[delta.tuner].DECLARATION.additive:
            return
        # A rescaling delta needs its own adapter's W in the tile: the plain base, or its own copy.
        mixed = any(blend.adapter == self._place and blend.reaches(view) for blend in draft.blends)
        if mixed or draft.replaced_by not in (None, self._place):
            message = "this delta rescales a tensor that is replaced or mixed by weight"
            raise MismatchError(message, code=Code.UNSUPPORTED, tensor=draft.name)

    def _note(self, found: Resolution, parameter: str) -> None:
        if found.how is How.SUFFIX:
            self.ledger.suffixed.append(f"{parameter} -> {found.placements[0].tensor}")

    def _unmatched(self, parameter: str, module: str) -> None:
        if self._permissions.skip_unmatched:
            self.ledger.skipped.append(module)
            return
        near = self._resolver.nearest(parameter)
        if (
            parameter.endswith(".bias")
            and parameter.removesuffix("bias") + "weight" in self._drafts
        ):
            message = "the adapter shifts a bias, the base layer has none"
            code = Code.BIAS_NOT_IN_BASE
        else:
            message, code = "the base has no such module", Code.MODULE_NOT_IN_BASE
        hint = f"nearest in the base: {', '.join(near)}; " if near else ""
        hint += "--skip-unmatched leaves such modules out"
        raise MismatchError(message, code=code, tensor=module, hint=hint)

    def _replace(self, item: Replaced) -> None:
        found = self._resolver.resolve(
            item.parameter, lambda name: self._base.shapes[name] == item.value.shape
        )
        if found is None:
            self._add_new(item)
            return
        self._note(found, item.parameter)
        if len(found.placements) != 1 or found.fused or _is_partial(found):
            for name, view, value in parts_of(item, found, self._base):
                self._blend_part(self._drafts[name], view, value)
            return
        self._blend(self._drafts[found.placements[0].tensor], item)

    def _blend_part(self, draft: Draft, view: View, value: TensorRef) -> None:
        """A part of a fused tensor, or a piece that the base stores for itself."""
        _check_dtype(draft)
        self._open_to_others(draft, value)
        draft.see_as(view.fold)
        draft.blends.append(Blend(self._place, value, self._weight, view=view))

    def _add_new(self, item: Replaced) -> None:
        """A saved module that the base lacks, such as a new classification head."""
        if not item.saved_module or self._weight != 1.0:
            self._unmatched(item.parameter, item.value.name)
            return
        self._drafts[item.parameter] = Draft(
            item.parameter, item.value, None, self._new_dtype(), replaced_by=self._place
        )
        message = "the base has no such tensor; the adapter's is added"
        self.ledger.findings.append(
            Finding(Code.MODULE_NOT_IN_BASE, Severity.WARNING, message, tensor=item.parameter)
        )

    def _new_dtype(self) -> Dtype:
        """The base's own dtype: that of most of its floating-point tensors."""
        counts = Counter(
            draft.dtype.name for draft in self._drafts.values() if draft.dtype.floating
        )
        return DTYPES[counts.most_common(1)[0][0] if counts else "F32"]

    def _blend(self, draft: Draft, item: Replaced) -> None:
        value = item.value
        self._open_to_others(draft, value)
        if item.rows is not None:
            self._blend_rows(draft, item)
            return
        if value.shape != draft.shape and prod(value.shape) != prod(draft.shape):
            self._resize(draft, item)
            return
        if value.shape != draft.shape:
            message = f"the adapter's tensor is {list(value.shape)}, the base's {list(draft.shape)}"
            raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=value.name)
        if self._weight == 1.0 and not draft.is_touched:
            draft.replace(value, self._place)
        elif same_bytes(value, draft.source):
            self.ledger.unused.append(value.name)
        else:
            draft.blends.append(Blend(self._place, value, self._weight))

    def _open_to_others(self, draft: Draft, value: TensorRef) -> None:
        """Where another adapter's tensor took the base's place, make it a blend as well."""
        if draft.replaced_by in (None, self._place) or draft.original is None:
            return
        if draft.original.shape != draft.source.shape:
            message = "two adapters resize this tensor"
            raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=value.name)
        if same_bytes(draft.source, draft.original):
            self.ledger.unused.append(draft.source.name)
            draft.restore()
        draft.share()

    def _blend_rows(self, draft: Draft, item: Replaced) -> None:
        rows = item.rows or ()
        if draft.shape[1:] != item.value.shape[1:] or max(rows, default=-1) >= draft.shape[0]:
            message = (
                f"token rows up to {max(rows, default=0)} of width {item.value.shape[1]}, "
                f"the embedding is {list(draft.shape)}"
            )
            raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=item.value.name)
        draft.blends.append(Blend(self._place, item.value, self._weight, rows))

    def _resize(self, draft: Draft, item: Replaced) -> None:
        """A resized vocabulary: the tensor comes whole from the adapter."""
        value = item.value
        same_width = value.shape[1:] == draft.shape[1:] and len(value.shape) in (1, 2)
        if not same_width:
            message = f"the adapter's tensor is {list(value.shape)}, the base's {list(draft.shape)}"
            raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=value.name)
        if self._weight != 1.0:
            message = (
                f"{list(draft.shape)} becomes {list(value.shape)}, which cannot be weighted "
                f"by {self._weight:g}"
            )
            raise MismatchError(
                message, code=Code.WEIGHT_NEEDS_ONE, tensor=value.name, hint="use weight 1"
            )
        if draft.is_touched:
            message = f"another adapter changes this tensor at its old shape {list(draft.shape)}"
            raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=value.name)
        message = f"resized from {list(draft.shape)} to {list(value.shape)}"
        self.ledger.findings.append(
            Finding(Code.VOCAB_RESIZED, Severity.WARNING, message, tensor=draft.name)
        )
        draft.replace(value, self._place)

    def _report(self) -> None:
        for code, names, text in (
            (Code.MODULE_SKIPPED, self.ledger.skipped, "modules left out, the base lacks them"),
            (Code.TENSOR_UNUSED, self.ledger.unused, "tensors are the base's own bytes; not used"),
            (Code.TENSOR_DROPPED, self.ledger.dropped, "tensors dropped, as allowed"),
            (Code.MATCHED_BY_SUFFIX, self.ledger.suffixed, "names matched by suffix and shape"),
        ):
            if names:
                shown = ", ".join(names[:MOST_NAMED]) + (" ..." if len(names) > MOST_NAMED else "")
                self.ledger.findings.append(
                    Finding(
                        code,
                        Severity.NOTE if code is Code.TENSOR_UNUSED else Severity.WARNING,
                        f"{len(names)} {text}: {shown}",
                        file=self._adapter.name,
                    )
                )


def _check_dtype(draft: Draft) -> None:
    if not draft.source.dtype.floating or draft.source.dtype.bits < 16:
        message = f"dtype {draft.source.dtype.name} cannot be added to; is the base quantized?"
        raise MismatchError(message, code=Code.DTYPE_NOT_COMPUTABLE, tensor=draft.name)


def _names(delta: Delta) -> list[str]:
    return [ref.name for role, ref in delta.roles.items() if role not in delta.shared]


def _shapes(drafts: Drafts) -> dict[str, tuple[int, ...]]:
    return {name: draft.shape for name, draft in drafts.items()}


def _is_partial(found: Resolution) -> bool:
    placement = found.placements[0]
    return bool(placement.of_parameter or placement.of_tensor or placement.unsupported)
