"""The scale of files that carry none: from a config beside them, or from the caller."""

from __future__ import annotations

import math

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.reading import Reading
from adaptool.store.adapter_files import AdapterFiles

_ALPHA = ("lora_alpha", "alpha")


def told_scaling(files: AdapterFiles, reading: Reading, rank: int) -> float:
    """Alpha over rank, of the config's alpha or the caller's, or the caller's scale.

    InputError where nobody says, or the config's alpha is no finite number.
    """
    config, rank = files.config or {}, max(rank, 1)  # what has no rank is refused for its shape
    for name in _ALPHA:
        if name in config:
            return _number(config[name], name, files) / max(1, rank)
    if reading.scale is not None:
        return reading.scale
    if reading.alpha is not None:
        return reading.alpha / max(1, rank)
    message = "the file carries no scale, and there is no adapter_config.json beside it"
    hint = "--alpha N (or --scale F) of the training"
    raise InputError(message, code=Code.CONFIG_MISSING, file=files.source.name, hint=hint)


def _number(value: object, name: str, files: AdapterFiles) -> float:
    if isinstance(value, int | float) and type(value) is not bool and math.isfinite(value):
        return float(value)
    message = f"is {value!r}, must be a finite number"
    raise InputError(message, code=Code.FIELD_VALUE, file=files.config_file, field=name)
