"""The scale of files that carry none: from a config beside them, or from the caller."""

from __future__ import annotations

import math

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import UNKNOWN_SCALE
from adaptool.model.reading import SCALE_HINT, Reading
from adaptool.store.adapter_files import AdapterFiles

_ALPHA = ("lora_alpha", "alpha")


def told_scaling(files: AdapterFiles, reading: Reading, rank: int) -> float:
    """Alpha over rank, of the config's alpha or the caller's, or the caller's scale.

    Where nobody says: NaN for an adapter that is only described, else InputError. InputError as
    well where the config's alpha is no finite number.
    """
    config = files.config or {}
    for name in _ALPHA:
        if name in config:
            return _number(config[name], name, files) / max(1, rank)
    message = "the file carries no scale, and there is no adapter_config.json beside it"
    return said_scaling(files, reading, rank, message)


def said_scaling(files: AdapterFiles, reading: Reading, rank: int, message: str) -> float:
    """What the caller says; without it NaN for what is only described, else InputError."""
    if reading.scale is not None:
        return reading.scale
    if reading.alpha is not None:
        return reading.alpha / max(1, rank)  # factors of rank 0 are refused where they are read
    if reading.describes:
        return UNKNOWN_SCALE
    raise InputError(message, code=Code.CONFIG_MISSING, file=files.source.name, hint=SCALE_HINT)


def _number(value: object, name: str, files: AdapterFiles) -> float:
    if isinstance(value, int | float) and type(value) is not bool and math.isfinite(value):
        return float(value)
    message = f"is {value!r}, must be a finite number"
    raise InputError(message, code=Code.FIELD_VALUE, file=files.config_file, field=name)
