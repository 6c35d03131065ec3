"""Tensors that a model has once and uses under several names.

Input embeddings and output head are the usual case. Which names may be one is known from the
model's class (`names/tied.py`); whether they are is told by the file, as transformers 5 reads it:
an absent name is a copy, two that are stored are one where their bytes agree. A change on one side
must not reach the other, so every name is then written and the config's flag turned off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.options import Tie
from adaptool.names.families import NEVER_UNTIED, model_types
from adaptool.names.resolver import Resolver
from adaptool.names.tied import FLAG, family_of
from adaptool.names.tied import Tie as NamedTie
from adaptool.ops.alike import alike, same_bytes_of
from adaptool.ops.drafts import Draft, Drafts
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

# What models that transformers does not know are taken to share, by the ends of their names.
HEADS = ("lm_head.weight", "proj_out.weight", "cls.predictions.decoder.weight", "embed_out.weight")
EMBEDDINGS = (
    "shared.weight",
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
)
_WITHOUT_HEAD = (
    "Model",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)


@dataclass(frozen=True, slots=True)
class Group:
    """Names that may be one tensor, the one first that the others copy.

    `stored` are those that the base's file holds, with its tensors.
    """

    names: tuple[str, ...]
    stored: Mapping[str, TensorRef]

    @property
    def first(self) -> str:
        """The first name that is stored: what absent ones are copies of."""
        return next(name for name in self.names if name in self.stored)


@dataclass(frozen=True, slots=True)
class Ties:
    """What a model may share.

    `edits` are the config's keys for a model whose names are all written; None: it is not known
    to mean the same then. `patterns` are expressions for names that are tied layer by layer.
    """

    groups: tuple[Group, ...] = ()
    family: str = "unknown"
    edits: Mapping[str, Any] | None = None
    patterns: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()


@dataclass(slots=True)
class TieDecision:
    """What became of tied weights: config keys to set, what to say, what to record."""

    config: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    decision: str | None = None
    unused: list[str] = field(default_factory=list)


def find(drafts: Drafts, config: Mapping[str, Any] | None) -> Ties:
    """The groups of names of which the base stores at least one."""
    kinds = model_types(config)
    kind = kinds[0] if kinds else "unknown"
    family = family_of(config)
    if family is None:
        return Ties(tuple(_by_endings(drafts, config)), kind)
    resolver = Resolver(drafts, kinds)
    found = (_group(tie, drafts, resolver) for tie in family.ties)
    return Ties(
        groups=tuple(group for group in found if group is not None),
        family=kind,
        edits={FLAG: False, **family.kept} if family.parts else None,
        patterns=family.patterns,
        runtimes=next((NEVER_UNTIED[each] for each in kinds if each in NEVER_UNTIED), ()),
    )


def _group(tie: NamedTie, drafts: Drafts, resolver: Resolver) -> Group | None:
    """The tie's names as this checkpoint has them; None where they are apart or not there."""
    places = {name: _place(name, resolver) for name in tie.names}
    stored = {name: place for name, place in places.items() if place is not None}
    # A file of an older release leaves the flag out where it is true, and the copies with it.
    implied = not tie.said and len(stored) < len(places)
    if not stored or not (tie.flag or implied):
        return None
    first = next(iter(stored))
    names = tuple(places[name] or _beside(name, first, stored[first]) for name in tie.names)
    return Group(names, {place: drafts[place].source for place in stored.values()})


def _place(parameter: str, resolver: Resolver) -> str | None:
    """The tensor that is the parameter and nothing else."""
    found = resolver.resolve(parameter, lambda _: False)
    if found is None or found.fused or len(found.placements) != 1:
        return None
    placement = found.placements[0]
    return None if placement.of_parameter or placement.of_tensor else placement.tensor


def _beside(name: str, other: str, stored: str) -> str:
    """`name` as it stands in a checkpoint that stores the parameter `other` as `stored`."""
    if other.endswith(f".{stored}"):
        return name.removeprefix(other.removesuffix(stored))
    return name


def _by_endings(drafts: Drafts, config: Mapping[str, Any] | None) -> Iterator[Group]:
    """An embedding and a head of a model that transformers does not know, by their names."""
    embedding, head = _named(drafts, EMBEDDINGS), _named(drafts, HEADS)
    if embedding is None or (config or {}).get(FLAG) is False or "_class_name" in (config or {}):
        return
    if head is None and _is_headless(config or {}):
        return
    names = (embedding, head or HEADS[0])
    yield Group(names, {name: drafts[name].source for name in names if name in drafts})


def _is_headless(config: Mapping[str, Any]) -> bool:
    names = [name for name in config.get("architectures") or () if isinstance(name, str)]
    return bool(names) and all(
        name.endswith(_WITHOUT_HEAD) and not name.endswith("LMHeadModel") for name in names
    )


def _named(drafts: Drafts, endings: tuple[str, ...]) -> str | None:
    for ending in endings:
        found = [name for name in drafts if f".{name}".endswith(f".{ending}")]
        if len(found) == 1:
            return found[0]
    return None


def add_absent(drafts: Drafts, ties: Ties) -> None:
    """Give every name that is not stored a draft of its own, so that deltas can be put onto it."""
    for group in ties.groups:
        shared = drafts[group.first]
        for name in group.names:
            if name not in drafts:
                drafts[name] = Draft(name, shared.source, None, shared.dtype, virtual=True)


def settle(drafts: Drafts, ties: Ties, tie: Tie) -> TieDecision:
    """Write one tensor or several, as the contributions under all names ask for."""
    _refuse_patterns(drafts, ties)
    decision = TieDecision()
    touched = [group for group in ties.groups if _is_touched(drafts, group)]
    together = [_joined(drafts, group, decision) for group in touched]
    apart = [members for members in together if not _all_alike(members)]
    for members in together:
        _refuse_cut_base(members)
    if apart and tie is Tie.UNTIE:
        _untie(drafts, ties, apart[0], decision)
        return decision
    for members in apart:
        _keep(members, tie, decision)
    for members in together:
        _share(members, decision)
    for group in ties.groups:
        for name in group.names:
            if name in drafts and drafts[name].virtual:
                del drafts[name]
    decision.findings += _unused_notes(decision.unused)
    return decision


def _is_touched(drafts: Drafts, group: Group) -> bool:
    return any(drafts[name].is_touched for name in group.names)


def _joined(drafts: Drafts, group: Group, decision: TieDecision) -> list[Draft]:
    """The names that are one tensor in the base, the stored one first.

    transformers 5 leaves names apart that the file holds with other values, whatever the config
    says.
    """
    first = group.first
    together, apart = [drafts[first]], []
    for name in group.names:
        stored = group.stored.get(name)
        if stored is None or (name != first and same_bytes_of(stored, group.stored[first])):
            together.append(drafts[name])
        elif name != first:
            apart.append(name)
    if apart:
        message = f"the config ties it to {first}, the file holds other values: they stay apart"
        decision.findings.append(
            Finding(Code.TIED_WEIGHTS, Severity.WARNING, message, tensor=apart[0])
        )
    return together


def _all_alike(members: Sequence[Draft]) -> bool:
    return all(alike(members[0], other) for other in members[1:])


def _refuse_cut_base(members: Sequence[Draft]) -> None:
    """MismatchError where training began by taking a part out of a tensor with several names."""
    if len(members) < 2:
        return
    for draft in members:
        for piece in draft.pieces:
            declared = tuners()[piece.delta.tuner].DECLARATION
            if declared.cuts_base:
                message = f"{declared.title} took a part out of this tensor before training, and "
                message += f"{len(members)} names share it: {', '.join(x.name for x in members)}"
                hint = "merge with --init-adapter DIR: the adapter as it was before training"
                raise MismatchError(
                    message, code=Code.TIED_WEIGHTS, tensor=piece.delta.module, hint=hint
                )


def _refuse_patterns(drafts: Drafts, ties: Ties) -> None:
    """MismatchError where an adapter changes what the model ties layer by layer."""
    expressions = [re.compile(pattern) for pattern in ties.patterns]
    for name, draft in drafts.items() if expressions else ():
        if draft.is_touched and any(each.match(name) for each in expressions):
            message = f"{ties.family} models share this tensor between layers"
            hint = "merging adapters of shared layers is not supported"
            raise MismatchError(message, code=Code.TIED_WEIGHTS, tensor=name, hint=hint)


def _keep(members: Sequence[Draft], tie: Tie, decision: TieDecision) -> None:
    """All changes onto the one tensor; MismatchError where that is not asked for, or cannot be."""
    first = members[0]
    if tie is Tie.ERROR:
        message = "the adapter changes one side of tied weights"
        hint = "merge --tie untie writes the second tensor, --tie keep changes both sides"
        raise MismatchError(message, code=Code.TIED_WEIGHTS, tensor=first.name, hint=hint)
    whole = [draft for draft in members if draft.replaced_by is not None]
    if any(not same_bytes_of(draft.source, whole[0].source) for draft in whole[1:]):
        message = "the adapter holds another tensor for each side of tied weights"
        hint = "merge --tie untie writes both"
        raise MismatchError(message, code=Code.TIED_WEIGHTS, tensor=first.name, hint=hint)
    if whole and whole[0] is not first:
        first.take_source(whole[0])
    for other in members[1:]:
        first.take_changes(other)
    message = "both sides of the tied weights change, unlike in training"
    decision.decision = "kept"
    decision.findings.append(
        Finding(Code.TIED_WEIGHTS, Severity.WARNING, message, tensor=first.name)
    )


def _share(members: Sequence[Draft], decision: TieDecision) -> None:
    """One tensor: every stored name gets what the first one has."""
    first = members[0]
    offered = {name for draft in members for name in draft.brought()}
    decision.unused += sorted(offered - first.brought())
    for other in members[1:]:
        other.take_source(first)
        other.blends, other.pieces, other.fold = list(first.blends), list(first.pieces), first.fold


def _unused_notes(unused: Sequence[str]) -> list[Finding]:
    if not unused:
        return []
    message = f"{len(unused)} tensors of the other side of tied weights, which is the same"
    return [Finding(Code.TENSOR_UNUSED, Severity.NOTE, message + "; not used", tensor=unused[0])]


def _untie(drafts: Drafts, ties: Ties, apart: Sequence[Draft], decision: TieDecision) -> None:
    """Every name of every group is written: the flag is that of all."""
    first = apart[0].name
    if ties.edits is None:
        message = f"the adapter changes one side of tied weights; untying {ties.family} is not"
        message += " known to load and mean the same"
        hint = "merge --tie keep changes both sides, as PEFT's does"
        raise MismatchError(message, code=Code.TIED_WEIGHTS, tensor=first, hint=hint)
    written = [draft for draft in drafts.values() if draft.virtual]
    for draft in written:
        draft.virtual = False
    names = ", ".join(draft.name for draft in written) or first
    message = f"untied: {names} written on its own, {FLAG} becomes false"
    decision.config, decision.decision = dict(ties.edits), "untied"
    decision.findings.append(Finding(Code.TIED_WEIGHTS, Severity.WARNING, message, tensor=first))
    decision.findings += [
        Finding(
            Code.TIE_RUNTIME,
            Severity.WARNING,
            f"{runtime} cannot load this family untied",
            tensor=apart[-1].name,
        )
        for runtime in ties.runtimes
    ]
