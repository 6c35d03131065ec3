"""Edits to config.json: only the keys that the content changes, in the file's own order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


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
