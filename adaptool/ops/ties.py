"""Adapters on one side of tied weights.

Input embeddings and output head often share one tensor. A delta on one side must not change the
other, so the second tensor is written and the config's flag flipped, for families where that is
known to load and mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.options import Tie
from adaptool.names.families import TIES, TieRecord, model_types
from adaptool.ops.drafts import Draft, Drafts

FLAG = "tie_word_embeddings"
HEADS = ("lm_head.weight", "proj_out.weight", "cls.predictions.decoder.weight", "embed_out.weight")
EMBEDDINGS = (
    "shared.weight",
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
)


@dataclass(frozen=True, slots=True)
class TiedPair:
    """Names of one tensor: the input side's, the head's, and the stacks' own where there are."""

    embedding: str
    head: str
    record: TieRecord | None
    family: str
    also: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """Every name but the embedding's."""
        return (self.head, *self.also)


@dataclass(slots=True)
class TieDecision:
    """What became of tied weights: config keys to set, what to say, what to record."""

    config: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    decision: str | None = None
    unused: list[str] = field(default_factory=list)


def tied_pair(drafts: Drafts, config: Mapping[str, Any] | None) -> TiedPair | None:
    """The names that share a tensor, None where nothing is tied.

    Weights are tied where the config says so, or where the config says nothing against it and the
    head is not stored although the model has one.
    """
    if config is None or _flag(config) is False:
        return None
    kinds = model_types(config)
    record = next((TIES[kind] for kind in kinds if kind in TIES), None)
    embedding = _named(drafts, (record.embedding,)) if record else None
    if embedding is None:
        # A decoder cut out of an encoder-decoder, say: tied, but not as its family's record says.
        record, embedding = None, _named(drafts, EMBEDDINGS)
    if embedding is None:
        return None
    heads = (record.head,) if record else HEADS
    head = _named(drafts, heads)
    if head is None:
        if _is_headless(config) or not (_flag(config) or _has_head(config)):
            return None
        head = heads[0]
    elif not _flag(config):
        return None
    prefix = embedding.removesuffix(record.embedding) if record else ""
    also = tuple(prefix + ending for ending in record.also) if record else ()
    return TiedPair(embedding, head, record, kinds[0] if kinds else "unknown", also)


def _flag(config: Mapping[str, Any]) -> bool | None:
    for place in (config, config.get("text_config")):
        if isinstance(place, Mapping) and isinstance(place.get(FLAG), bool):
            flag: bool = place[FLAG]
            return flag
    return None


def _architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("architectures") or ()
    return tuple(name for name in names if isinstance(name, str))


def _has_head(config: Mapping[str, Any]) -> bool:
    return any(name.endswith(_WITH_HEAD) for name in _architectures(config))


def _is_headless(config: Mapping[str, Any]) -> bool:
    """An encoder or a classifier: there is no head whose weights could be tied."""
    names = _architectures(config)
    return bool(names) and all(
        name.endswith(_WITHOUT_HEAD) and not name.endswith(_WITH_HEAD) for name in names
    )


_WITH_HEAD = (
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForMaskedLM",
    "ForPreTraining",
    "DoubleHeadsModel",
)
_WITHOUT_HEAD = (
    "Model",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)


def _named(drafts: Drafts, endings: tuple[str, ...]) -> str | None:
    for ending in endings:
        found = [name for name in drafts if f".{name}".endswith(f".{ending}")]
        if len(found) == 1:
            return found[0]
    return None


def add_head(drafts: Drafts, pair: TiedPair) -> None:
    """Give every name of the tied tensor a draft of its own, so that deltas can be put onto it."""
    shared = drafts[pair.embedding]
    for name in pair.others:
        if name not in drafts:
            drafts[name] = Draft(name, shared.source, None, shared.dtype, virtual=True)


def settle(drafts: Drafts, pair: TiedPair, tie: Tie, *, adapter_keeps: bool) -> TieDecision:
    """Write one tensor or several, as the contributions on all sides ask for."""
    every = [drafts[name] for name in (pair.embedding, *pair.others)]
    apart = [draft for draft in every if _separates(draft)]
    if apart:
        _spread_copies(every)
    resized = len({draft.shape for draft in every}) > 1
    if not apart:
        return _share(drafts, every, None)
    if adapter_keeps:
        return _share(drafts, every, "kept, as the adapter was trained")
    if resized:
        return _share(drafts, every, "kept, the vocabulary was resized")
    if tie is Tie.ERROR:
        message = "the adapter changes one side of tied weights"
        hint = "merge --tie untie writes the second tensor, --tie keep changes both sides"
        raise MismatchError(message, code=Code.TIED_WEIGHTS, tensor=pair.embedding, hint=hint)
    if tie is Tie.KEEP:
        for other in every[1:]:
            every[0].pieces += other.pieces
            other.pieces = []
        decided = _share(drafts, every, "kept")
        message = "both sides of the tied weights change, unlike in training"
        decided.findings.append(
            Finding(Code.TIED_WEIGHTS, Severity.WARNING, message, tensor=pair.embedding)
        )
        return decided
    return _untie(drafts, pair)


def _separates(draft: Draft) -> bool:
    """Whether something was trained for this side alone.

    Trained token rows change all sides, and so does a copy of an embedding that was resized or
    trained while it was tied.
    """
    return bool(draft.pieces) or draft.saved


def _is_replaced(draft: Draft) -> bool:
    return draft.replaced_by is not None or bool(draft.blends)


def _take_value(draft: Draft, other: Draft) -> None:
    """The other side's replacements, token rows included."""
    draft.source, draft.replaced_by, draft.original = (
        other.source,
        other.replaced_by,
        other.original,
    )
    draft.blends = list(other.blends)


def _spread_copies(every: Sequence[Draft]) -> None:
    """What is no training of one side reaches the sides that have nothing of the kind.

    A side with a delta of its own holds a plain copy of the base: that matters only where the
    vocabulary was resized.
    """
    giver = next((draft for draft in every if _is_replaced(draft) and not draft.saved), None)
    for taker in every:
        free = not taker.saved and not _is_replaced(taker)
        if giver is not None and free and not (giver.pieces and giver.shape == taker.shape):
            _take_value(taker, giver)
    rows = [blend for blend in every[0].blends if blend.rows is not None]
    for taker in every[1:]:
        taker.blends += [blend for blend in rows if blend not in taker.blends]


def _share(drafts: Drafts, every: Sequence[Draft], decision: str | None) -> TieDecision:
    """One tensor: what stands on another name goes onto the embedding, once."""
    embedding, *others = every
    offered = {name for draft in every for name in _tensors(draft)}
    for other in others:
        if other.pieces and not embedding.pieces:
            embedding.pieces, embedding.fold = list(other.pieces), other.fold
        if _is_replaced(other) and not _is_replaced(embedding):
            _take_value(embedding, other)
    unused = sorted(offered - _tensors(embedding))
    for other in others:
        if other.virtual:
            del drafts[other.name]
        else:
            _take_value(other, embedding)
            other.pieces, other.fold = list(embedding.pieces), embedding.fold
    return TieDecision(findings=_unused_notes(unused), decision=decision, unused=unused)


def _tensors(draft: Draft) -> set[str]:
    """Names of the adapters' tensors that this draft is made of."""
    refs = [ref for piece in draft.pieces for ref in piece.delta.roles.values()]
    refs += [blend.value for blend in draft.blends]
    refs += [draft.source] if draft.replaced_by is not None else []
    return {ref.name for ref in refs}


def _unused_notes(unused: Sequence[str]) -> list[Finding]:
    if not unused:
        return []
    message = (
        f"{len(unused)} tensors of the other side of tied weights, which is the same; not used"
    )
    return [Finding(Code.TENSOR_UNUSED, Severity.NOTE, message, tensor=unused[0])]


def _untie(drafts: Drafts, pair: TiedPair) -> TieDecision:
    record = pair.record
    if record is None:
        message = f"the adapter changes one side of tied weights; untying {pair.family} is not"
        message += " known to load and mean the same"
        hint = "merge --tie keep changes both sides, as PEFT's does"
        raise MismatchError(message, code=Code.TIED_WEIGHTS, tensor=pair.embedding, hint=hint)
    every = record.every_copy or _separates(drafts[pair.embedding])
    for name in pair.others:
        draft = drafts[name]
        if name == pair.head or every or _separates(draft) or not draft.virtual:
            draft.virtual = False
        else:
            del drafts[name]
    for name, original in record.bias:
        _bias_of(drafts, name, original)
    message = f"untied: {pair.head} is written on its own, {FLAG} becomes false"
    findings = [Finding(Code.TIED_WEIGHTS, Severity.WARNING, message, tensor=pair.embedding)]
    findings += [
        Finding(
            Code.TIE_RUNTIME,
            Severity.WARNING,
            f"{runtime} cannot load this family untied",
            tensor=pair.head,
        )
        for runtime in record.runtimes
    ]
    return TieDecision({FLAG: False, **record.config}, findings, "untied")


def _bias_of(drafts: Drafts, name: str, original: str) -> None:
    found = _named(drafts, (original,))
    if name not in drafts and found is not None:
        source = drafts[found]
        drafts[name] = replace(source, name=name, file=None)
