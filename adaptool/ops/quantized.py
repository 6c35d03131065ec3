"""A quantized base in a merge: its packed weights as plain tensors, and what is written of them.

`all` writes every weight in 16 bit and removes `quantization_config`. `touched` does so for the
modules that an adapter changes and those that runtimes fuse with them; they enter the scheme's
skip list, and every other byte stays. `keep` stores what changed in the same format again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adaptool.dtypes import BY_TORCH_NAME, DTYPES, Dtype
from adaptool.errors import MismatchError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.options import Quantized
from adaptool.model.quantizer import Packed
from adaptool.names.fusions import FUSIONS
from adaptool.ops.drafts import Draft, Drafts
from adaptool.ops.recoding import recoded
from adaptool.quantizers import quantizers
from adaptool.quantizers.decoding import DecodedSource, plain
from adaptool.store.checkpoint import Checkpoint

FIELD = "quantization_config"
HEADS = frozenset({"lm_head", "score", "classifier", "embed_out", "proj_out", "qa_outputs"})
# One expert's tensor, or one of the parameters that stack them all.
_EXPERT = re.compile(r"(.*\bexperts)\..+")


@dataclass(slots=True)
class Opened:
    """The packed weights of a base, by plain name, and the drafts they stood for."""

    packed: dict[str, Packed] = field(default_factory=dict)
    stored: dict[str, list[Draft]] = field(default_factory=dict)
    schemes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """What became of the scheme: the config's new entry (None: removed), what to say and record."""

    config: Mapping[str, Any] | None
    findings: tuple[Finding, ...]
    decision: Mapping[str, Any]


def scheme_of(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The `quantization_config` of a model, None for a plain one."""
    found = (config or {}).get(FIELD)
    return found if isinstance(found, Mapping) else None


def open_up(drafts: Drafts, base: Checkpoint) -> tuple[Drafts, Opened]:
    """Drafts in which every packed weight is one plain tensor, in the seat of its first part.

    MismatchError where no quantizer knows the scheme.
    """
    config = scheme_of(base.config)
    if config is None:
        return drafts, Opened()
    opened = Opened()
    for name, quantizer in quantizers().items():
        settings = quantizer.settings({**(base.config or {}), **config})
        if settings is not None:
            opened.schemes = (*opened.schemes, name)
            found = quantizer.packed(base.tensors, settings)
            opened.packed |= {packed.name: packed for packed in found}
    if not opened.packed:
        _refuse(config, base, known=bool(opened.schemes))
    owner = {ref.name: packed for packed in opened.packed.values() for ref in packed.roles.values()}
    made: Drafts = {}
    target = _plain_dtype(base.config or {})
    for name, draft in drafts.items():
        packed = owner.get(name)
        if packed is None:
            made[name] = draft
            continue
        opened.stored.setdefault(packed.name, []).append(draft)
        if packed.name not in made:
            dtype = packed.dtype if packed.dtype.bits == 16 else target
            made[packed.name] = Draft(packed.name, plain(packed), draft.file, dtype)
    return made, opened


def _plain_dtype(config: Mapping[str, Any]) -> Dtype:
    """The 16-bit dtype that the model was made in."""
    for key in ("dtype", "torch_dtype"):
        found = BY_TORCH_NAME.get(str(config.get(key)))
        if found is not None and found.bits == 16 and found.floating:
            return found
    return DTYPES["BF16"]


def _refuse(config: Mapping[str, Any], base: Checkpoint, *, known: bool) -> None:
    kind = config.get("quant_method", config.get("quant_algo", "unknown"))
    message = f"the base is quantized ({kind}), which is not read yet"
    titles = ", ".join(quantizer.SCHEME.title for quantizer in quantizers().values())
    hint = f"merge into the 16-bit original; read are: {titles}"
    if known:
        message = f"says {kind}, but no weight is stored so"
        hint = "remove the entry if the weights are plain, or download the base again"
    raise MismatchError(message, code=Code.BASE_QUANTIZED, file=base.name, field=FIELD, hint=hint)


def close_up(
    drafts: Drafts, opened: Opened, base: Checkpoint, mode: Quantized
) -> tuple[Drafts, Closed | None]:
    """The drafts that will be written, and the config's new `quantization_config`."""
    config = scheme_of(base.config)
    if config is None:
        return drafts, None
    if mode is Quantized.ALL:
        return drafts, _all(drafts, opened)
    _check_places(drafts, opened, base, mode)
    close = _kept if mode is Quantized.KEEP else _touched
    made, closed = close(drafts, opened, config)
    return _in_base_order(made, opened, base), closed


def _check_places(drafts: Drafts, opened: Opened, base: Checkpoint, mode: Quantized) -> None:
    """MismatchError where a weight is not packed in its own place: replicated layers, say."""
    for name, draft in drafts.items():
        source = (draft.original or draft.source).source
        if not isinstance(source, DecodedSource) or source.packed.name == name:
            continue
        # An untied head is plain, and named in the skip list as such.
        is_head = name.removesuffix(".weight").rpartition(".")[2] in HEADS
        if is_head and name not in opened.packed and mode is Quantized.TOUCHED:
            continue
        message = f"is a copy of {source.packed.name}, which is stored as {source.packed.scheme}"
        raise MismatchError(
            message,
            code=Code.UNSUPPORTED,
            file=base.name,
            tensor=name,
            field="--quantized",
            hint="merge --quantized all writes every weight in 16 bit",
        )


def _kept(drafts: Drafts, opened: Opened, config: Mapping[str, Any]) -> tuple[Drafts, Closed]:
    made, anew = recoded(drafts, opened.packed, opened.stored)
    schemes = sorted({opened.packed[name].scheme for name in anew})
    count = f"{len(anew)} of {len(opened.packed)} quantized weights are stored anew"
    message = f"{count} as {', '.join(schemes)}" if anew else count
    note = Finding(Code.BASE_QUANTIZED, Severity.NOTE, message, field=FIELD)
    decision = {"mode": "keep", "schemes": list(opened.schemes), "weights": sorted(anew)}
    return made, Closed(config, (note,), decision)


def _all(drafts: Drafts, opened: Opened) -> Closed:
    size = sum(draft.source.elements * draft.dtype.bits // 8 for draft in drafts.values())
    message = (
        f"{len(opened.packed)} weights stored as {', '.join(opened.schemes)} become 16 bit: "
        f"{size / 1e9:.1f} GB in all"
    )
    note = Finding(Code.BASE_QUANTIZED, Severity.NOTE, message, field=FIELD)
    return Closed(None, (note,), {"mode": "all", "schemes": list(opened.schemes)})


def _touched(drafts: Drafts, opened: Opened, config: Mapping[str, Any]) -> tuple[Drafts, Closed]:
    touched = {name for name in opened.packed if drafts[name].is_touched}
    plain_names = touched | set(_siblings(touched, opened.packed))
    made: Drafts = {}
    for name, draft in drafts.items():
        if name in opened.packed and name not in plain_names:
            made.update({part.name: replace(part, stored=True) for part in opened.stored[name]})
        else:
            made[name] = draft
    modules = sorted(name.removesuffix(".weight") for name in plain_names)
    schemes = sorted({opened.packed[name].scheme for name in plain_names})
    changed = dict(config)
    for scheme in schemes:
        changed = quantizers()[scheme].skipping(
            changed, [*_plain_already(drafts, opened), *modules]
        )
    message = f"{len(modules)} of {len(opened.packed)} quantized modules are written in 16 bit"
    notes = [Finding(Code.BASE_QUANTIZED, Severity.NOTE, message, field=FIELD)]
    notes += [
        Finding(Code.BASE_QUANTIZED, Severity.WARNING, caution, field=FIELD)
        for scheme in schemes
        if (caution := quantizers()[scheme].SCHEME.caution)
    ]
    decision = {"mode": "touched", "schemes": list(opened.schemes), "modules": modules}
    return made, Closed(changed, tuple(notes), decision)


def _plain_already(drafts: Drafts, opened: Opened) -> list[str]:
    """Heads that the base never quantized: a skip list replaces what loaders skip by themselves."""
    return [
        module
        for name, draft in drafts.items()
        if name.endswith(".weight") and name not in opened.packed and len(draft.shape) == 2
        for module in [name.removesuffix(".weight")]
        if module.rpartition(".")[2] in HEADS
    ]


def _in_base_order(drafts: Drafts, opened: Opened, base: Checkpoint) -> Drafts:
    """Restored parts stand again where they stood, a plain weight in the seat of its first part."""
    places = {name: place for place, name in enumerate(base.tensors)}

    def place(name: str) -> int:
        stored = opened.stored.get(name, ())
        parts = [] if drafts[name].stored else [draft.name for draft in stored]
        known = [places[part] for part in (name, *parts) if part in places]
        return min(known, default=len(places))

    return {name: drafts[name] for name in sorted(drafts, key=place)}


def _siblings(touched: Iterable[str], packed: Mapping[str, Packed]) -> Iterable[str]:
    """Modules that runtimes fuse with a touched one: q/k/v, gate/up, the experts of a layer."""
    experts = {match[1] for name in touched if (match := _EXPERT.fullmatch(name))}
    for name in packed:
        match = _EXPERT.fullmatch(name)
        if match and match[1] in experts:
            yield name
    for name in touched:
        yield from (sibling for sibling in _fused_with(name) if sibling in packed)


def _fused_with(name: str) -> Sequence[str]:
    module = name.removesuffix(".weight")
    parent, _, leaf = module.rpartition(".")
    return [
        f"{parent}.{member}.weight"
        for fusion in FUSIONS
        if leaf in fusion.members
        for member in fusion.members
    ]
