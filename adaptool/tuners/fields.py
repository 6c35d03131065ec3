"""Fields of a tuner's config, checked before they are used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptool.errors import InputError
from adaptool.findings import Code


def whole(
    config: Mapping[str, Any], field: str, default: int | None = None, *, least: int = 1
) -> int:
    """A whole number of at least `least`; InputError where it is another thing, or missing.

    `default` is what PEFT takes where the field is missing or null; None: PEFT's own default
    would be a guess.
    """
    value = _present(config, field, default)
    if type(value) is not int:
        raise _refused(field, value, "a whole number")
    if value < least:
        message = f"is {value}, must be at least {least}"
        raise InputError(message, code=Code.FIELD_VALUE, field=field)
    return value


def number(config: Mapping[str, Any], field: str, default: float | None = None) -> float:
    """A finite number; errors and `default` as in `whole`."""
    value = _present(config, field, default)
    if type(value) not in (int, float):
        raise _refused(field, value, "a number")
    if not math.isfinite(value):
        message = f"is {value}, must be finite"
        raise InputError(message, code=Code.SCALING_NOT_FINITE, field=field)
    return float(value)


def flag(config: Mapping[str, Any], field: str, *, default: bool = False) -> bool:
    """True or false; PEFT would take any text for true."""
    value = _present(config, field, default)
    if type(value) is not bool:
        raise _refused(field, value, "true or false")
    return value


def word(config: Mapping[str, Any], field: str, known: tuple[str, ...], default: str) -> str:
    """One of `known`; InputError lists them."""
    value = _present(config, field, default)
    if value not in known:
        raise _refused(field, value, f"one of {', '.join(known)}")
    return str(value)


def _present(config: Mapping[str, Any], field: str, default: object) -> Any:  # noqa: ANN401 - a JSON value
    value = config.get(field)
    if value is not None:
        return value
    if default is None:
        message = "missing, and the adapter's values do not tell it"
        hint = "state it in adapter_config.json as it was trained with"
        raise InputError(message, code=Code.FIELD_MISSING, field=field, hint=hint)
    return default


def _refused(field: str, value: object, wanted: str) -> InputError:
    kind = type(value).__name__
    shown = repr(value) if len(repr(value)) < 60 else f"a {kind} of {len(repr(value))} characters"
    message = f"is {shown} ({kind}), must be {wanted}"
    return InputError(message, code=Code.FIELD_TYPE, field=field)
