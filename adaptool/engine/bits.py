"""Floating-point numbers as the bits that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

DOUBT = 2.0**-40
"""Of |M| + |v|: the sums of two devices differ by less (2^-53 for each of r products)."""


@dataclass(frozen=True, slots=True)
class Format:
    """A floating-point dtype by its bits: the unsigned numbers that hold it, and its mantissa."""

    name: str
    pattern: str
    mantissa: int

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (int(self.pattern.removeprefix("uint")) - 1)

    @property
    def exponent(self) -> int:
        """The bits of the exponent."""
        return (self.sign - 1) >> self.mantissa << self.mantissa


FORMATS = {
    "BF16": Format("BF16", "uint16", 7),
    "F16": Format("F16", "uint16", 10),
    "F32": Format("F32", "uint32", 23),
}


def rounded_bits(values: Array, form: Format) -> Array:
    """float64 to the bits of a format, rounded once, to nearest even."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        if form.name != "BF16":
            kind = {"F16": np.float16, "F32": np.float32}[form.name]
            return values.astype(kind).view(form.pattern)
        single = values.astype(np.float32)
        back = single.astype(np.float64)
    # To odd first: the last bit remembers that something was cut off, so one rounding follows.
    bits = single.view(np.uint32).astype(np.int64)
    inexact = (back != values) & np.isfinite(single)
    bits -= inexact & (np.abs(back) > np.abs(values))
    bits |= inexact
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def float_values(bits: Array, form: Format) -> Array:
    """The numbers that bits stand for, in float64."""
    import numpy as np

    if form.name == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    kind = {"F16": np.float16, "F32": np.float32}[form.name]
    return bits.view(kind).astype(np.float64)


def binades(bits: Array, form: Format) -> Array:
    """The exponent fields."""
    found: Array = (bits & (form.sign - 1)) >> form.mantissa
    return found


def ordered(bits: Array, form: Format) -> Array:
    """Bits as whole numbers in the order of the values; -0 comes right before 0."""
    import numpy as np

    signed = bits.view(form.pattern.removeprefix("u"))
    # All ones where the sign is set: then the size n becomes -1 - n.
    found = (signed & (form.sign - 1)) ^ (signed >> (8 * signed.itemsize - 1))
    return found.astype(np.int64 if form.name == "F32" else np.int32)


def patterns(ordered: Array, form: Format) -> Array:
    """The bits that `ordered` made numbers of."""
    size = ordered ^ (ordered >> (8 * ordered.itemsize - 1))
    bits: Array = (size | (ordered & form.sign)).astype(form.pattern)
    return bits


def most_steps(merged: Array, values: Array, form: Format) -> int:
    """How many steps the rounded `values` can be from W, where `merged` is W + d rounded.

    `values` are `merged` - d; all in float64.
    """
    import numpy as np

    if not len(values):
        return 0
    size = rounded_bits(np.abs(merged), form)
    lower = size - (size == _largest(form))
    step = float_values((lower + 1).astype(form.pattern), form) - float_values(
        lower.astype(form.pattern), form
    )
    half = step / 2 + DOUBT * (np.abs(merged) + np.abs(values))
    place = ordered(rounded_bits(values, form), form)
    above = ordered(rounded_bits(values + half, form), form) - place
    below = place - ordered(rounded_bits(values - half, form), form)
    return int(max(above.max(), below.max()))


def _largest(form: Format) -> int:
    """The bits of the largest finite number."""
    return form.exponent - 1
