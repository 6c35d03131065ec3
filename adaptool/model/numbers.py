"""The numbers that a tensor's stored words stand for, as float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import Dtype
from adaptool.errors import InternalError
from adaptool.findings import Code

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

WORDS = {8: "u1", 16: "<u2", 32: "<u4", 64: "<u8"}


def as_float64(words: Array, dtype: Dtype) -> Array:
    """Numbers from the words that `array` gives."""
    import numpy as np

    native = _NATIVE.get(dtype.name)
    if native is not None:
        return _widened(words.view(native))
    if dtype.name == "BF16":
        return _widened((words.astype("<u4") << 16).view("<f4"))
    if dtype.name in _SMALL_FLOATS:
        return np.asarray(_float8_values(*_SMALL_FLOATS[dtype.name]))[words]
    message = f"{dtype.name} holds no plain numbers"
    raise InternalError(message, code=Code.DTYPE_NOT_COMPUTABLE)


def _widened(values: Array) -> Array:
    import numpy as np

    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return values.astype("<f8")


_NATIVE: Mapping[str, str] = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "<u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
}
# Exponent bits, bias, and the words that are no numbers (IEEE's infinities and NaN where None).
# Sources: OCP OFP8 1.0; for the FNUZ kinds (neither infinities nor -0) arXiv:2206.02915.
_SMALL_FLOATS: Mapping[str, tuple[int, int, frozenset[int] | None]] = {
    "F8_E4M3": (4, 7, frozenset({0x7F, 0xFF})),
    "F8_E5M2": (5, 15, None),
    "F8_E4M3FNUZ": (4, 8, frozenset({0x80})),
    "F8_E5M2FNUZ": (5, 16, frozenset({0x80})),
}


def _float8_values(exponent_bits: int, bias: int, no_numbers: frozenset[int] | None) -> list[float]:
    """The number that each of the 256 words stands for."""
    mantissa_bits = 7 - exponent_bits
    top = (1 << exponent_bits) - 1
    values = []
    for word in range(256):
        exponent = (word & 0x7F) >> mantissa_bits
        mantissa = word & ((1 << mantissa_bits) - 1)
        fraction = mantissa / (1 << mantissa_bits)
        value = (fraction if not exponent else 1 + fraction) * 2.0 ** (max(exponent, 1) - bias)
        if no_numbers is None and exponent == top:
            value = math.nan if mantissa else math.inf
        elif no_numbers is not None and word in no_numbers:
            value = math.nan
        values.append(-value if word & 0x80 else value)
    return values
