"""What a prediction of the base's bits gets wrong, in few bytes.

A merged value M is W + d, rounded. Subtracting the same d in float64 gives v, and v rounded is the
prediction P. It is wrong (almost) only where M lies in a higher binade than P, because only there
M had fewer digits to spend. Such *candidates* are found again from the bits of M and P alone, so
the stream holds one small number for each of them, ordered by how many binades apart they are.

Another device, BLAS or tile height gives a v that differs in its last digits. Where v lies so near
to the middle of two numbers that this decides, and where anything else is wrong, the element is an
*exception*: its place and its true bits are stored, and it is no candidate.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptool.engine.bits import (
    DOUBT,
    Format,
    binades,
    float_values,
    ordered,
    patterns,
    rounded_bits,
)
from adaptool.store.sidecar import inflated

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


_HEAD = struct.Struct("<II")
_LEVEL = 4
_FAST = 1
_MOST = 127
# Elements looked at together: what numpy holds of them stays in a cache.
_RUN = 64 * 1024
_LEAST_NORMAL = 2.0**-126


@dataclass(frozen=True, slots=True)
class Marks:
    """What a run of elements needs: exceptions (place, bits), candidates (place, code, binades)."""

    places: Array
    bits: Array
    candidates: Array
    codes: Array
    drops: Array

    def between(self, start: int, stop: int) -> Marks:
        """Those of elements [start, stop), their places counted from `start`."""
        import numpy as np

        one = slice(*np.searchsorted(self.places, (start, stop)))
        two = slice(*np.searchsorted(self.candidates, (start, stop)))
        return Marks(
            self.places[one] - start,
            self.bits[one],
            self.candidates[two] - start,
            self.codes[two],
            self.drops[two],
        )

    def spread(self, where: Array) -> Marks:
        """The same marks, of elements that lie at `where` of something larger."""
        return Marks(where[self.places], self.bits, where[self.candidates], self.codes, self.drops)


def joined(parts: list[Marks]) -> Marks:
    """Marks of neighbouring runs, in their order."""
    import numpy as np

    return Marks(
        np.concatenate([part.places for part in parts]),
        np.concatenate([part.bits for part in parts]),
        np.concatenate([part.candidates for part in parts]),
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.drops for part in parts]),
    )


def mark(
    true: Array, merged: Array, values: Array, form: Format, theirs: Format | None = None
) -> Marks:
    """Marks of elements of which `values` (float64) are the predictions, not rounded yet.

    `true` and `merged` are bits; `theirs` is the merged format where it is another: there are no
    candidates then.
    """
    import numpy as np

    alike = theirs is None or theirs == form
    predicted, sure = _predicted(merged, values, form, theirs or form)
    drops = _drops(merged, predicted, form) if alike else np.zeros(len(true), np.int16)
    steps = ordered(true, form) - ordered(predicted, form)
    chosen = sure & (drops > 0) & (np.abs(steps) <= _MOST)
    wrong = ~chosen & (~sure | (steps != 0) | (drops > 0))
    return Marks(
        np.flatnonzero(wrong),
        true[wrong],
        np.flatnonzero(chosen),
        steps[chosen].astype(np.int8),
        drops[chosen],
    )


def _predicted(merged: Array, values: Array, form: Format, theirs: Format) -> tuple[Array, Array]:
    """The rounded values, and whether any device rounds them so; where not, they are arbitrary.

    In 16 bits: a value that is the middle of two numbers once it is float32 is in doubt. Any other
    lies 2^-25 of itself away from one, more than `DOUBT` unless W nearly cancels.
    """
    import numpy as np

    if form.name == "F32" or theirs.name == "F32":
        doubt = DOUBT * (np.abs(float_values(merged, theirs)) + np.abs(values))
        low = rounded_bits(values - doubt, form)
        return low, low == rounded_bits(values + doubt, form)
    with np.errstate(over="ignore", under="ignore"):
        single = values.astype(np.float32)
        bits = single.view(np.uint32)
        if form.name == "BF16":
            found = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
            middle = (bits & 0xFFFF) == 0x8000
        else:
            found = single.astype(np.float16).view(np.uint16)
            # Middles of float16's subnormals have still more zeros behind them.
            middle = (bits & 0x0FFF) == 0
        size = np.abs(float_values(merged, theirs)).astype(np.float32)
        return found, ~(middle | (size > np.abs(single) * 4096))


def suspects(true: Array, merged: Array, exact: Array, form: Format) -> Array:
    """Places where W + (M - exact) might not round to W, or M lies higher; `exact` is float64.

    Elsewhere M is `exact` rounded, not from near a middle, to steps no wider than W's on the side
    where they are closer.
    """
    import numpy as np

    return np.concatenate(
        [
            start + np.flatnonzero(_suspected(true[run], merged[run], exact[run], form))
            for start in range(0, len(true), _RUN)
            for run in [slice(start, start + _RUN)]
        ]
    )


def _suspected(true: Array, merged: Array, exact: Array, form: Format) -> Array:
    """Whether M's binade is above that of the number below W, or `exact` lies near a middle."""
    import numpy as np

    kind = np.dtype(form.pattern).type
    size = kind(form.sign - 1)
    exponent = kind((form.sign - 1) >> form.mantissa << form.mantissa)
    # M's binade is above that of the number just below W where its first number is not below W.
    found: Array = (merged & exponent) >= (true & size)
    found |= near_middle(exact, form)
    return found


def near_middle(values: Array, form: Format) -> Array:
    """Where float64 values lie near the middle of two numbers of a format."""
    import numpy as np

    found: Array
    if form.name == "F32":
        # 29 bits are cut off. Below the smallest normal number it is more of them.
        low = values.view(np.uint32)[::2]
        found = ((low + np.uint32(1 << 16)) & np.uint32(0x1FFFFFFF)) >> 17 == 1 << 11
        found |= np.abs(values) < _LEAST_NORMAL
        return found
    with np.errstate(over="ignore", under="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    # Middles of float16's subnormals have still more zeros behind them.
    shift, middle = {"BF16": (16, 1 << 31), "F16": (20, 0)}[form.name]
    found = (bits << np.uint32(shift)) == np.uint32(middle)
    return found


def encode_sparse(marks: Marks) -> bytes:
    """The stream of one block; empty where its prediction is right and has no candidates."""
    import numpy as np

    if not len(marks.places) and not len(marks.codes):
        return b""
    order = np.argsort(marks.drops, kind="stable")
    gaps = np.diff(marks.places, prepend=0).astype("<u4")
    body = _planes(gaps) + _planes(marks.bits) + marks.codes[order].tobytes()
    # No strings repeat in what is near to noise: looking for them would be most of the time.
    engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    stream = engine.compress(body) + engine.flush()
    return _HEAD.pack(len(marks.places), len(marks.codes)) + stream


def decode_sparse(
    stream: bytes, predicted: Array, merged: Array | None, form: Format
) -> Array | None:
    """The true bits of a block; None where the stream does not fit the prediction.

    `merged` are the merged bits where they are of the same format.
    """
    import numpy as np

    if len(stream) < _HEAD.size:
        return None
    wrong, coded = _HEAD.unpack_from(stream)
    if max(wrong, coded) > len(predicted):
        return None
    width = predicted.itemsize
    body = inflated(stream[_HEAD.size :], wrong * (4 + width) + coded)
    if body is None:
        return None
    places = np.cumsum(_whole(body[: 4 * wrong], "<u4").astype(np.int64))
    if wrong and places[-1] >= len(predicted):
        return None
    bits = _whole(body[4 * wrong : (4 + width) * wrong], form.pattern)
    codes = np.frombuffer(body, np.int8, coded, (4 + width) * wrong)
    true = _recoded(predicted, merged, places, codes, form)
    if true is not None:
        true[places] = bits
    return true


def _recoded(
    predicted: Array, merged: Array | None, places: Array, codes: Array, form: Format
) -> Array | None:
    import numpy as np

    true = predicted.copy()
    if merged is None:
        return true if not len(codes) else None
    drops = _drops(merged, predicted, form)
    drops[places] = 0
    where = np.flatnonzero(drops > 0)
    if len(where) != len(codes):
        return None
    where = where[np.argsort(drops[where], kind="stable")]
    moved = ordered(predicted[where], form) + codes
    true[where] = patterns(moved, form)
    return true


def encode_xor(true: bytes | bytearray, merged: bytes | bytearray, width: int) -> bytes:
    """The difference of two blocks, deflated by byte planes of `width` bytes an element."""
    import numpy as np

    different = np.frombuffer(true, np.uint8) ^ np.frombuffer(merged, np.uint8)
    return zlib.compress(_turned(different, width), _FAST)


def decode_xor(stream: bytes, merged: bytes | bytearray, width: int) -> bytes | None:
    """The block that `encode_xor` was given; None where the stream is of another one."""
    import numpy as np

    body = inflated(stream, len(merged))
    if body is None:
        return None
    different = _turned_back(body, width)
    return (different ^ np.frombuffer(merged, np.uint8)).tobytes()


def encode_plain(true: bytes | bytearray, width: int) -> bytes:
    """A block, deflated by byte planes."""
    import numpy as np

    return zlib.compress(_turned(np.frombuffer(true, np.uint8), width), _FAST)


def decode_plain(stream: bytes, size: int, width: int) -> bytes | None:
    """The block that `encode_plain` was given; None where it has not `size` bytes."""
    body = inflated(stream, size)
    return None if body is None else _turned_back(body, width).tobytes()


def _drops(merged: Array, predicted: Array, form: Format) -> Array:
    """How many binades the merged values lie above the predicted ones."""
    import numpy as np

    higher: Array = binades(merged, form).astype(np.int16) - binades(predicted, form).astype(
        np.int16
    )
    return higher


def _planes(numbers: Array) -> bytes:
    import numpy as np

    return _turned(numbers.view(np.uint8), numbers.itemsize)


def _whole(planes: bytes, dtype: str) -> Array:
    import numpy as np

    return _turned_back(planes, np.dtype(dtype).itemsize).view(dtype)


def _turned(raw: Array, width: int) -> bytes:
    """All first bytes, then all second ones, ..."""
    return raw.reshape(-1, width).T.tobytes()


def _turned_back(planes: bytes, width: int) -> Array:
    import numpy as np

    return np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(width, -1).T).reshape(-1)
