"""What config and tensors of a PEFT adapter say about each other.

Both must say the same: a tensor of a module that the config does not select is loaded by nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adaptool.errors import AdaptoolError, InputError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.names.selection import ALL_LINEAR, Selection
from adaptool.store.adapter_files import AdapterFiles

# PEFT lists both for classification tasks; a model has one of them.
CLASSIFIERS = frozenset({"classifier", "score"})
CLASSIFYING = frozenset({"SEQ_CLS", "TOKEN_CLS"})
# Saved unasked where the vocabulary was resized. Source: PEFT's EMBEDDING_LAYER_NAMES.
EMBEDDINGS = frozenset({"embed_tokens", "lm_head"})


def review(adapter: Adapter, files: AdapterFiles) -> Adapter:
    """The adapter with its findings; InputError where something that must be there is missing."""
    errors = [*_missing_magnitudes(adapter, files), *_missing_saved(adapter, files)]
    if adapter.leftover:
        errors.append(_unrecognised(adapter, files))
    if not adapter.deltas and not errors and not _any_explained(adapter):
        message = f"{len(adapter.tensors)} tensors, none of an adapter"
        errors.append(InputError(message, code=Code.NO_ADAPTER_TENSORS, file=files.source.name))
    if errors:
        raise gathered(errors)
    notes = (
        *_bias_notes(adapter, files),
        *_target_notes(adapter, files),
        *_rank_notes(adapter),
        *_stray_notes(adapter, files),
    )
    return replace(
        adapter,
        findings=(*adapter.findings, *notes),
        replaced=tuple(
            replace(item, saved_module=item.saved_module or _is_saved(adapter, item.parameter))
            for item in adapter.replaced
        ),
    )


def _is_saved(adapter: Adapter, parameter: str) -> bool:
    module = parameter.rpartition(".")[0]
    names = set(adapter.config.get("modules_to_save") or ())
    if adapter.config.get("task_type") in CLASSIFYING:
        names |= CLASSIFIERS
    return any(f".{name}." in f".{module}." for name in names)


def _is_explained(adapter: Adapter, item: Replaced) -> bool:
    """Whether the config, or a habit of PEFT's, says why the file holds a tensor of the base."""
    return (
        item.rows is not None
        or item.copied_base
        or bool(item.tuner)
        or item.saved_module
        or _is_saved(adapter, item.parameter)
        or ("bias" in item.parameter and adapter.config.get("bias", "none") != "none")
        or item.parameter.rpartition(".")[0].rpartition(".")[2] in EMBEDDINGS
    )


def _any_explained(adapter: Adapter) -> bool:
    return any(_is_explained(adapter, item) for item in adapter.replaced)


def _stray_notes(adapter: Adapter, files: AdapterFiles) -> Iterator[Finding]:
    strays = [item for item in adapter.replaced if not _is_explained(adapter, item)]
    if strays:
        message = f"{len(strays)} tensors that the config does not name replace the base's"
        yield Finding(
            Code.KEYS_UNRECOGNISED,
            Severity.WARNING,
            message,
            file=files.source.name,
            tensor=strays[0].value.name,
        )


def _unrecognised(adapter: Adapter, files: AdapterFiles) -> AdaptoolError:
    names = [ref.name for ref in adapter.leftover]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    message = f"{len(names)} of {len(adapter.tensors)} keys not recognised: {shown}"
    hint = "another tuner or layout wrote them; --allow-drop PATTERN leaves them out"
    return InputError(
        message,
        code=Code.KEYS_UNRECOGNISED,
        file=files.source.name,
        tensor=names[0],
        hint=hint,
    )


def _missing_magnitudes(adapter: Adapter, files: AdapterFiles) -> Iterator[AdaptoolError]:
    if not adapter.config.get("use_dora"):
        return
    plain = [delta.module for delta in adapter.deltas if delta.tuner == "lora"]
    if plain:
        message = f"use_dora is true, but {len(plain)} modules have no lora_magnitude_vector"
        hint = "without it the weights would be wrong; the file is incomplete"
        yield InputError(
            message,
            code=Code.MAGNITUDE_MISSING,
            file=files.source.name,
            tensor=plain[0],
            field="use_dora",
            hint=hint,
        )


def _missing_saved(adapter: Adapter, files: AdapterFiles) -> Iterator[AdaptoolError]:
    present = {f".{item.parameter}" for item in adapter.replaced}
    names = set(adapter.config.get("modules_to_save") or ())
    if adapter.config.get("task_type") in CLASSIFYING and _any_named(CLASSIFIERS, present):
        names -= CLASSIFIERS
    for name in sorted(names):
        if not _any_named({name}, present):
            message = f"modules_to_save names {name!r}, the file holds no tensor of it"
            yield InputError(
                message,
                code=Code.MODULES_TO_SAVE_MISSING,
                file=files.source.name,
                field="modules_to_save",
                hint="the file is incomplete: save the adapter again",
            )


def _any_named(names: frozenset[str] | set[str], present: set[str]) -> bool:
    # PEFT matches with a plain `endswith`, without a dot before the name.
    return any(f"{name}." in entry for entry in present for name in names)


def _bias_notes(adapter: Adapter, files: AdapterFiles) -> Iterator[Finding]:
    bias = adapter.config.get("bias", "none")
    if bias in ("all", "lora_only") and not any(
        item.parameter.endswith(".bias") for item in adapter.replaced
    ):
        message = f"bias is {bias!r}, the file holds no bias"
        yield Finding(
            Code.BIAS_MISSING, Severity.WARNING, message, file=files.config_file, field="bias"
        )


def unselected(config: Mapping[str, Any], deltas: Sequence[Delta]) -> tuple[Delta, ...]:
    """Deltas of modules that the config does not select: PEFT would leave them out.

    None where the config does not tell: all linear layers, or single parameters, are targeted.
    """
    targets = config.get("target_modules")
    if not targets or targets == ALL_LINEAR or config.get("target_parameters"):
        return ()
    selection = Selection.of(config)
    return tuple(
        delta
        for delta in deltas
        if not any(selection.takes(module) for module in _owners(delta))
        and not (config.get("ensure_weight_tying") and not _IN_A_LAYER.search(delta.parameter))
    )


# PEFT takes an end of tied weights out of the targets and still writes its factors.
_IN_A_LAYER = re.compile(r"\.\d+\.")


def keeps_ties(config: Mapping[str, Any]) -> bool:
    """Whether PEFT ties its adapters: where it is asked to, and of modules of two names only."""
    if not config.get("ensure_weight_tying"):
        return False
    targets = config.get("target_modules")
    if isinstance(targets, str) and any(re.fullmatch(targets, name) for name in EMBEDDINGS):
        return True
    names = [*(config.get("modules_to_save") or ())]
    names += targets if isinstance(targets, list) else []
    return any(name.rpartition(".")[2] in EMBEDDINGS for name in names)


def _owners(delta: Delta) -> tuple[str, str]:
    """The delta's module, and the one that was wrapped with it inside (nn.MultiheadAttention)."""
    return delta.parameter.rpartition(".")[0], delta.module.partition(".base_layer")[0]


def _target_notes(adapter: Adapter, files: AdapterFiles) -> Iterator[Finding]:
    strangers = unselected(adapter.config, adapter.deltas)
    if strangers:
        yield Finding(
            Code.TARGETS_FEWER_THAN_TENSORS,
            Severity.WARNING,
            f"{len(strangers)} modules have tensors that PEFT leaves out: no field selects them",
            file=files.config_file,
            tensor=strangers[0].module,
            field="target_modules",
        )


def absent_targets(adapter: Adapter, modules: Iterable[str]) -> tuple[str, ...]:
    """Names in `target_modules` that no tensor belongs to, though they select a base's module."""
    targets = adapter.config.get("target_modules")
    names = targets if isinstance(targets, list) else []
    changed = [delta.parameter for delta in adapter.deltas]
    changed += [item.parameter for item in adapter.replaced if item.tuner]
    held = {f".{parameter.rpartition('.')[0]}" for parameter in changed}
    untrained = [name for name in names if not any(path.endswith(f".{name}") for path in held)]
    if not untrained or adapter.config.get("target_parameters"):
        return ()
    selection, every = Selection.of(adapter.config), tuple(modules)
    alone = {name: replace(selection, targets=frozenset({name})) for name in untrained}
    return tuple(name for name, one in alone.items() if any(one.takes(each) for each in every))


def _rank_notes(adapter: Adapter) -> Iterator[Finding]:
    for delta in adapter.deltas:
        terms = delta.terms
        least = min(terms.out, terms.inner)
        if terms.rank is not None and terms.sized and terms.rank > least:
            message = f"rank {terms.rank} exceeds the delta's {terms.out} x {terms.inner}"
            yield Finding(
                Code.RANK_EXCEEDS_SHAPE,
                Severity.WARNING,
                message,
                tensor=delta.module,
                hint=f"rank {least} could hold the same delta",
            )
