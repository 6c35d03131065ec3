"""Edits to config.json: only the keys that the content changes, in the file's own order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adaptool.model.adapter import Adapter


def edited(config: Mapping[str, Any], raw: bytes, edits: Mapping[str, Any]) -> bytes:
    """config.json with `edits` applied; the very bytes where nothing changes.

    A key that stands only in `text_config` is edited there; a value of None removes the key.
    """
    changed = {key: value for key, value in edits.items() if _current(config, key) != value}
    if not changed:
        return raw
    body = json.loads(json.dumps(config))
    text = body.get("text_config")
    for key, value in changed.items():
        if value is None:
            body.pop(key, None)
            continue
        if isinstance(text, dict) and key in text:
            text[key] = value
        if key in body or not (isinstance(text, dict) and key in text):
            body[key] = value
    return json.dumps(body, indent=2, ensure_ascii=False).encode() + b"\n"


def _current(config: Mapping[str, Any], key: str) -> object:
    text = config.get("text_config")
    if isinstance(text, Mapping) and key in text and key not in config:
        return text[key]
    return config.get(key)


def dtype_edits(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The dtype key that the config has, where `--dtype` changes the weights'."""
    return {key: dtype for key in ("dtype", "torch_dtype") if key in config}


_CLASSIFYING = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
_CLASSIFIERS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
# What class names end in before the task; the longer first.
_TASKS = ("ForConditionalGeneration", "ForPreTraining", "ForMaskedLM", "ForCausalLM", "LMHeadModel")


def classifier_edits(config: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """architectures and labels, where the adapter brings a classification head.

    transformers counts two labels where config.json counts none.
    """
    task = _CLASSIFYING.get(str(adapter.config.get("task_type")))
    heads = [
        item.value.shape[0]
        for item in adapter.replaced
        if f".{item.parameter}".endswith(tuple(f".{name}" for name in _CLASSIFIERS))
    ]
    if task is None or len(heads) != 1:
        return {}
    edits: dict[str, Any] = {}
    names = config.get("architectures")
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str):
        edits["architectures"] = [_as_classifier(names[0], task)]
    return edits | _labels(config, heads[0])


def _as_classifier(architecture: str, task: str) -> str:
    for ending in (*_TASKS, "Model"):
        if architecture.endswith(ending):
            return architecture.removesuffix(ending) + task
    return architecture


def _labels(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    known = config.get("id2label")
    if isinstance(known, Mapping):
        if len(known) == count:
            return {}
        names = [f"LABEL_{place}" for place in range(count)]
        return {
            "id2label": {str(place): name for place, name in enumerate(names)},
            "label2id": {name: place for place, name in enumerate(names)},
        }
    return {} if config.get("num_labels", 2) == count else {"num_labels": count}
