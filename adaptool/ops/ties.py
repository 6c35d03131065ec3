"""Adapters on one side of tied weights.

Input embeddings and output head often share one tensor. A delta on one side must not change the
other, so the second tensor is written and the config's flag flipped, for families where that is
known to load and mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """Two names of one tensor: the input side's and the head's."""

    embedding: str
    head: str
    record: TieRecord | None
    family: str


@dataclass(slots=True)
class TieDecision:
    """What became of tied weights: config keys to set, what to say, what to record."""

    config: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    decision: str | None = None


def tied_pair(drafts: Drafts, config: Mapping[str, Any] | None) -> TiedPair | None:
    """The pair that shares a tensor, None where nothing is tied.

    Weights are tied where the config says so, or where the config says nothing against it and the
    head is not stored although the model has one.
    """
    if config is None or _flag(config) is False:
        return None
    kinds = model_types(config)
    record = next((TIES[kind] for kind in kinds if kind in TIES), None)
    embedding = _named(drafts, (record.embedding,) if record else EMBEDDINGS)
    if embedding is None:
        return None
    heads = (record.head,) if record else HEADS
    head = _named(drafts, heads)
    if head is None:
        if not _flag(config) and not _has_head(config):
            return None
        head = heads[0]
    elif not _flag(config):
        return None
    return TiedPair(embedding, head, record, kinds[0] if kinds else "unknown")


def _flag(config: Mapping[str, Any]) -> bool | None:
    for place in (config, config.get("text_config")):
        if isinstance(place, Mapping) and isinstance(place.get(FLAG), bool):
            flag: bool = place[FLAG]
            return flag
    return None


def _has_head(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures") or ()
    ends = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")
    return any(isinstance(name, str) and name.endswith(ends) for name in names)


def _named(drafts: Drafts, endings: tuple[str, ...]) -> str | None:
    for ending in endings:
        found = [name for name in drafts if f".{name}".endswith(f".{ending}")]
        if len(found) == 1:
            return found[0]
    return None


def add_head(drafts: Drafts, pair: TiedPair) -> None:
    """Give the head a draft of its own, so that deltas can be put onto it."""
    if pair.head not in drafts:
        shared = drafts[pair.embedding]
        drafts[pair.head] = Draft(pair.head, shared.source, None, shared.dtype, virtual=True)


def settle(drafts: Drafts, pair: TiedPair, tie: Tie, *, adapter_keeps: bool) -> TieDecision:
    """Write one tensor or two, as the contributions on both sides ask for."""
    embedding, head = drafts[pair.embedding], drafts[pair.head]
    resized = embedding.shape != head.shape
    if not _separates(embedding) and not _separates(head):
        return _share(drafts, pair, embedding, head, None)
    if adapter_keeps:
        return _share(drafts, pair, embedding, head, "kept, as the adapter was trained")
    if resized and not (_separates(embedding) and _separates(head)):
        return _share(drafts, pair, embedding, head, "kept, the vocabulary was resized")
    if tie is Tie.ERROR:
        message = "the adapter changes one side of tied weights"
        hint = "--tie untie writes the second tensor, --tie keep changes both sides"
        raise MismatchError(message, code=Code.TIED_WEIGHTS, tensor=pair.embedding, hint=hint)
    if tie is Tie.KEEP:
        decided = _share(drafts, pair, embedding, head, "kept")
        message = "both sides of the tied weights change, unlike in training"
        decided.findings.append(
            Finding(Code.TIED_WEIGHTS, Severity.WARNING, message, tensor=pair.embedding)
        )
        return decided
    return _untie(drafts, pair, embedding, head)


def _separates(draft: Draft) -> bool:
    """Whether something asks for this side alone; trained token rows change both sides."""
    return (
        bool(draft.pieces)
        or draft.replaced_by is not None
        or any(blend.rows is None for blend in draft.blends)
    )


def _share(
    drafts: Drafts, pair: TiedPair, embedding: Draft, head: Draft, decision: str | None
) -> TieDecision:
    """One tensor: what stands on the head goes onto the embedding, once."""
    if decision == "kept" or not _separates(embedding):
        embedding.pieces += head.pieces
        embedding.blends += head.blends
        embedding.fold = max(embedding.fold, head.fold)
        if head.replaced_by is not None and embedding.replaced_by is None:
            embedding.replace(head.source, head.replaced_by)
    if head.virtual:
        del drafts[pair.head]
    else:
        head.source, head.replaced_by = embedding.source, embedding.replaced_by
        head.pieces, head.blends, head.fold = embedding.pieces, embedding.blends, embedding.fold
    return TieDecision(decision=decision)


def _untie(drafts: Drafts, pair: TiedPair, embedding: Draft, head: Draft) -> TieDecision:
    record = pair.record
    if record is None:
        message = f"the adapter changes one side of tied weights; untying {pair.family} is not"
        message += " known to load and mean the same"
        hint = "--tie keep changes both sides, as PEFT's merge does"
        raise MismatchError(message, code=Code.TIED_WEIGHTS, tensor=pair.embedding, hint=hint)
    rows = [blend for blend in embedding.blends if blend.rows is not None]
    head.blends += [blend for blend in rows if blend not in head.blends]
    head.virtual = False
    for ending in record.also:
        _copy_of(drafts, pair, ending, embedding)
    for name, original in record.bias:
        _bias_of(drafts, name, original)
    findings = [
        Finding(
            Code.TIED_WEIGHTS,
            Severity.WARNING,
            f"untied: {pair.head} is written on its own, {FLAG} becomes false",
            tensor=pair.embedding,
        )
    ]
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


def _copy_of(drafts: Drafts, pair: TiedPair, ending: str, embedding: Draft) -> None:
    prefix = pair.embedding.removesuffix(pair.record.embedding if pair.record else "")
    name = prefix + ending
    found = drafts.get(name)
    drafts[name] = replace(embedding, name=name, file=found.file if found else None)


def _bias_of(drafts: Drafts, name: str, original: str) -> None:
    found = _named(drafts, (original,))
    if name not in drafts and found is not None:
        source = drafts[found]
        drafts[name] = replace(source, name=name, file=None)
