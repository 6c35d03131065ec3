"""PEFT's own layout: adapter_config.json and adapter_model.safetensors.

A key is `base_model.model.<module path>.<ending>`; endings are the tuners' (`lora_A.weight`).
A key without one is a tensor that replaces the base's: modules_to_save, biases, `.base_layer.`
copies of the base, trained token rows. Source: PEFT 0.21.2, `get_peft_model_state_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adaptool.errors import AdaptoolError, InputError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts import Evidence
from adaptool.layouts.peft_config import check_config
from adaptool.layouts.peft_deltas import changed_base, decode_modules, token_rows
from adaptool.layouts.peft_encode import encode, losses
from adaptool.layouts.peft_keys import PREFIX, sort_keys
from adaptool.layouts.peft_modules import ModuleNames, pattern_name
from adaptool.layouts.peft_refusals import is_unmergeable, refuse_unsupported
from adaptool.layouts.peft_review import keeps_ties, review, unselected
from adaptool.model.adapter import UNKNOWN_SCALE, Adapter, Delta
from adaptool.model.reading import AS_IT_STANDS, Reading, is_allowed
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef

__all__ = ["TITLE", "decode", "encode", "losses", "sniff"]

TITLE = "PEFT"
DETECT = "keys begin with `base_model.model.`; adapter_config.json beside them, or in the metadata"
LOSSY = "nothing that PEFT has a tuner for; metadata of other trainers"


def sniff(files: AdapterFiles) -> Evidence:
    """PEFT's are the keys below `base_model.`; with a prompt's config all, even of none."""
    if is_unmergeable(files):
        return Evidence(len(files.tensors) or 1, (), "the config's peft_type is one of PEFT's")
    unclaimed = tuple(name for name in files.tensors if not name.startswith("base_model."))
    claimed = len(files.tensors) - len(unclaimed)
    return Evidence(claimed, unclaimed, f"{claimed} keys begin with base_model.")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError (with every other problem) where it contradicts itself."""
    scale = _given_scale(reading) if files.config is None else None
    files = _configured(files, reading)
    config = files.config or {}
    findings = list(files.findings) + list(check_config(config, files.config_file))
    refuse_unsupported(files)
    names = ModuleNames(config, files.tensors, PREFIX, reading.expert_packing)
    found = sort_keys(files, config)
    decoded = decode_modules(config, found, names)
    deltas, errors = decoded.deltas, decoded.errors
    try:
        found.replaced += token_rows(config, found.tokens)
    except AdaptoolError as error:
        errors.append(error)
    if errors:
        raise gathered([_placed(error, files) for error in errors])
    dropped = [ref for ref in found.leftover if is_allowed(ref.name, reading.allow_drop)]
    strangers = [
        delta
        for delta in unselected(config, deltas)
        if all(is_allowed(ref.name, reading.allow_drop) for ref in delta.roles.values())
    ]
    deltas = [delta for delta in deltas if delta not in strangers]
    dropped += [ref for delta in strangers for ref in delta.roles.values()]
    adapter = Adapter(
        name=files.name,
        layout="peft",
        config=config,
        deltas=tuple(_under(scale, delta) if scale is not None else delta for delta in deltas),
        replaced=(*found.replaced, *decoded.replaced),
        leftover=tuple(ref for ref in found.leftover if ref not in dropped),
        dropped=tuple(ref.name for ref in (*dropped, *found.unused)),
        tensors=files.tensors,
        findings=(*findings, *names.findings(), *_unused_notes(found.unused)),
        base=_text(config.get("base_model_name_or_path")),
        layer_replication=_replication(config),
        keeps_ties=keeps_ties(config),
        fan_in_fan_out=config.get("fan_in_fan_out"),
        changed_base=changed_base(config),
    )
    return review(adapter, files)


def _configured(files: AdapterFiles, reading: Reading) -> AdapterFiles:
    """The files with a config: their own, or a plain LoRA's where the caller gives the scale."""
    if files.config is not None:
        return files
    if reading.alpha is None and reading.scale is None and not reading.describes:
        message = "no adapter_config.json and no config in the metadata: the scale is unknown"
        hint = "put the adapter_config.json it was trained with beside it, or give --alpha N"
        raise InputError(message, code=Code.CONFIG_MISSING, file=files.source.name, hint=hint)
    alpha = 1.0 if reading.alpha is None else reading.alpha
    config = {"peft_type": "LORA", "lora_alpha": alpha, **_ranks(files.tensors)}
    return replace(files, config=config)


def _given_scale(reading: Reading) -> float | None:
    """The scale of a file without a config; None where it follows from the caller's alpha."""
    if reading.describes and reading.alpha is None and reading.scale is None:
        return UNKNOWN_SCALE
    return reading.scale


def _ranks(tensors: Mapping[str, TensorRef]) -> dict[str, Any]:
    """r and rank_pattern as the factors have them."""
    ranks = {
        pattern_name(name.removeprefix(PREFIX).partition(".lora_")[0]): ref.shape[0]
        for name, ref in tensors.items()
        if (".lora_A" in name or ".lora_embedding_A" in name) and ref.shape
    }
    most = max(ranks.values(), default=1)
    return {"r": most, "rank_pattern": {name: r for name, r in ranks.items() if r != most}}


def _under(scale: float, delta: Delta) -> Delta:
    """The delta under a scale that the caller gives."""
    return replace(delta, terms=replace(delta.terms, scaling=scale, alpha=None))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _placed(error: AdaptoolError, files: AdapterFiles) -> AdaptoolError:
    if error.file is None:
        error.file = files.source.name
    return error


def _unused_notes(unused: list[TensorRef]) -> tuple[Finding, ...]:
    """One note for all copies of modules that were replaced."""
    if not unused:
        return ()
    message = f"{len(unused)} copies of the base's modules beside the trained ones; not used"
    return (Finding(Code.TENSOR_UNUSED, Severity.NOTE, message, tensor=unused[0].name),)


def _replication(config: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    return tuple((first, last) for first, last in config.get("layer_replication") or ())
