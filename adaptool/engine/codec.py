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
from collections.abc import Iterator, Sequence
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

Bytes = bytes | bytearray | memoryview
_HEAD = struct.Struct("<II")
_FAST = 1
_MOST = 127
_RUN = 128 * 1024
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


@dataclass(frozen=True, slots=True)
class Suspects:
    """Elements that may need a mark: places, true and merged bits, the exact sum (float64)."""

    places: Array
    true: Array
    merged: Array
    exact: Array

    def between(self, start: int, stop: int) -> Suspects:
        """Those of elements [start, stop), their places counted from `start`."""
        import numpy as np

        part = slice(*np.searchsorted(self.places, (start, stop)))
        return Suspects(
            self.places[part] - start, self.true[part], self.merged[part], self.exact[part]
        )

    def marks(self, form: Format) -> Marks:
        """What subtracting (exact - W) from M would not give back."""
        ours, theirs = float_values(self.true, form), float_values(self.merged, form)
        values = ours + (theirs - self.exact)
        return mark(self.true, self.merged, values, form).spread(self.places)


Parts = Sequence[tuple[int, Marks | Suspects]]


def settled(parts: Parts, form: Format) -> Marks:
    """The marks of neighbouring runs of elements, each with its first place, in their order."""
    suspected = [(first, part) for first, part in parts if isinstance(part, Suspects)]
    if suspected:  # together: of a single tile's, numpy's calls cost more than the work
        return _joined_suspects(suspected).marks(form)
    return _joined_marks([(first, part) for first, part in parts if isinstance(part, Marks)])


def _joined_marks(parts: Sequence[tuple[int, Marks]]) -> Marks:
    import numpy as np

    return Marks(
        np.concatenate([first + part.places for first, part in parts]),
        np.concatenate([part.bits for _, part in parts]),
        np.concatenate([first + part.candidates for first, part in parts]),
        np.concatenate([part.codes for _, part in parts]),
        np.concatenate([part.drops for _, part in parts]),
    )


def _joined_suspects(parts: Sequence[tuple[int, Suspects]]) -> Suspects:
    import numpy as np

    return Suspects(
        np.concatenate([first + part.places for first, part in parts]),
        np.concatenate([part.true for _, part in parts]),
        np.concatenate([part.merged for _, part in parts]),
        np.concatenate([part.exact for _, part in parts]),
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
    wrong = np.flatnonzero(~chosen & (~sure | (steps != 0) | (drops > 0)))
    coded = np.flatnonzero(chosen)
    return Marks(wrong, true[wrong], coded, steps[coded].astype(np.int8), drops[coded])


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


def suspects(true: Array, merged: Array, exact: Array, middles: Array, form: Format) -> Suspects:
    """Elements where W + (M - exact) might not round to W, or M lies higher; `exact` is float64.

    `middles` are the places where `exact` lies near the middle of two numbers. Elsewhere M is
    `exact` rounded, not from near a middle, to steps no wider than W's on the side where they are
    closer.
    """
    import numpy as np

    kind = np.dtype(form.pattern).type
    exponent, size = kind(form.exponent), kind(form.sign - 1)
    found = np.empty(len(true), np.bool_)
    for run in _runs(len(true)):
        # M's binade is above that of the number just below W where its first is not below W.
        np.greater_equal(merged[run] & exponent, true[run] & size, out=found[run])
    found[middles] = True
    where = _places(found)
    return Suspects(where, true[where], merged[where], exact[where])


def mark_rounded(
    true: Array, merged: Array, values: Array, form: Format, *, rounded: Array, middles: Array
) -> Marks:
    """As `mark` of the same format, where the predictions are `rounded` already.

    `middles` are the places where `values` lie near the middle of two numbers. No element is
    looked at where the prediction is right, not in doubt, and M not higher: a sum that cancels so
    far that it is in doubt has a higher M, unless all are subnormal, where nothing is lost.
    """
    import numpy as np

    exponent = np.dtype(form.pattern).type(form.exponent)
    found = np.empty(len(true), np.bool_)
    for run in _runs(len(true)):
        np.greater(merged[run] & exponent, rounded[run] & exponent, out=found[run])
        found[run] |= rounded[run] != true[run]
    found[middles] = True
    where = _places(found)
    return mark(true[where], merged[where], values[where], form).spread(where)


def _runs(count: int) -> Iterator[slice]:
    """What is looked at together, so that what numpy makes on the way stays small."""
    for start in range(0, count, _RUN):
        yield slice(start, start + _RUN)


def _places(found: Array) -> Array:
    """numpy.flatnonzero of booleans of which few are true, in half the time.

    It jumps from one true to the next; over eight at a time it need not guess.
    """
    import numpy as np

    packed = np.packbits(found, bitorder="little")
    eights = np.flatnonzero(packed != 0)
    bits = np.unpackbits(packed[eights], bitorder="little")
    within = np.flatnonzero(bits.view(np.bool_))
    places: Array = (eights[within >> 3] << 3) + (within & 7)
    return places


def middles(values: Array, form: Format) -> Array:
    """Places where float64 values lie near the middle of two numbers of a format."""
    import numpy as np

    if form.name == "F32":
        # 29 bits are cut off. Below the smallest normal number it is more of them.
        low = values.view(np.uint32)[::2]
        found = ((low + np.uint32(1 << 16)) & np.uint32(0x1FFFFFFF)) >> 17 == 1 << 11
        found |= np.abs(values) < _LEAST_NORMAL
        return np.flatnonzero(found)
    with np.errstate(over="ignore", under="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    # Middles of float16's subnormals have still more zeros behind them.
    shift, middle = {"BF16": (16, 1 << 31), "F16": (20, 0)}[form.name]
    return np.flatnonzero((bits << np.uint32(shift)) == np.uint32(middle))


def encode_sparse(marks: Marks) -> bytes:
    """The stream of one block; empty where its prediction is right and has no candidates."""
    import numpy as np

    if not len(marks.places) and not len(marks.codes):
        return b""
    order = np.argsort(marks.drops, kind="stable")
    gaps = np.diff(marks.places, prepend=0).astype("<u4")
    body = _planes(gaps) + _planes(marks.bits) + marks.codes[order].tobytes()
    # No strings repeat in what is near to noise: looking for them takes time and gives nothing.
    engine = zlib.compressobj(_FAST, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    stream = engine.compress(body) + engine.flush()
    return _HEAD.pack(len(marks.places), len(marks.codes)) + stream


def decode_sparse(
    stream: bytes, predicted: Array, merged: Array | None, form: Format
) -> Array | None:
    """The true bits of a block; None where the stream does not fit the prediction.

    `merged` are the merged bits where they are of the same format. `predicted` is corrected in
    place where it can be written to.
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

    true = predicted if predicted.flags.writeable else predicted.copy()
    if merged is None:
        return true if not len(codes) else None
    exponent = np.dtype(form.pattern).type(form.exponent)
    higher = np.empty(len(true), np.bool_)
    for run in _runs(len(true)):
        np.greater(merged[run] & exponent, true[run] & exponent, out=higher[run])
    higher[places] = False
    where = _places(higher)
    if len(where) != len(codes):
        return None
    found = true[where]
    order = np.argsort(_drops(merged[where], found, form), kind="stable")
    moved = ordered(found[order], form) + codes
    true[where[order]] = patterns(moved, form)
    return true


def encode_xor(true: Bytes, merged: Bytes, width: int) -> bytes:
    """The difference of two blocks, deflated by byte planes of `width` bytes an element."""
    import numpy as np

    different = np.frombuffer(true, np.uint8) ^ np.frombuffer(merged, np.uint8)
    return zlib.compress(_turned(different, width), _FAST)


def decode_xor(stream: bytes, merged: Bytes, width: int) -> bytes | None:
    """The block that `encode_xor` was given; None where the stream is of another one."""
    import numpy as np

    body = inflated(stream, len(merged))
    if body is None:
        return None
    different = _turned_back(body, width)
    return (different ^ np.frombuffer(merged, np.uint8)).tobytes()


def encode_plain(true: Bytes, width: int) -> bytes:
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
