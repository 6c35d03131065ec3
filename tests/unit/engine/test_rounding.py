"""The one rounding, against rational numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptool.engine.rounding import round_into


@dataclass(frozen=True)
class Format:
    """A binary format: digits of the significand, and the exponents of its normal numbers."""

    dtype: torch.dtype
    digits: int
    least: int
    greatest: int

    def nearest(self, value: float) -> float:
        """`value` rounded to nearest even, by the definition."""
        if value == 0 or not math.isfinite(value):
            return value
        exponent = max(math.frexp(value)[1] - 1, self.least)
        step = Fraction(2) ** (exponent - self.digits + 1)
        magnitude = round(Fraction(abs(value)) / step) * step  # a Fraction rounds half to even
        over = magnitude >= Fraction(2) ** (self.greatest + 1)
        return math.copysign(math.inf if over else float(magnitude), value)


BF16 = Format(torch.bfloat16, 8, -126, 127)
F16 = Format(torch.float16, 11, -14, 15)
F32 = Format(torch.float32, 24, -126, 127)
SIXTEEN = pytest.mark.parametrize("kind", [BF16, F16], ids=["bfloat16", "float16"])


def rounded(kind: Format, values: Sequence[float], arithmetic: torch.dtype) -> torch.Tensor:
    value = torch.tensor(values, dtype=arithmetic)
    target = torch.empty(value.shape, dtype=kind.dtype)
    round_into(target, value, torch.empty(value.shape, dtype=torch.float32))
    return target


def check(kind: Format, values: Sequence[float], arithmetic: torch.dtype = torch.float64) -> None:
    """Each value becomes the nearest one, with its sign, NaN stays NaN."""
    found = rounded(kind, values, arithmetic).double().tolist()
    for value, one in zip(values, found, strict=True):
        expected = kind.nearest(value)
        assert math.isnan(one) if math.isnan(value) else one == expected, value.hex()
        assert math.isnan(value) or math.copysign(1, one) == math.copysign(1, value), value.hex()


def near_middles(kind: Format) -> st.SearchStrategy[float]:
    """Exact middles between two neighbours and what lies a few float64 steps or less beside."""

    def beside(pattern: int, steps: int, share: float, sign: bool) -> float:
        pair = torch.tensor([pattern, pattern + 1], dtype=torch.int16).view(kind.dtype).double()
        low, high = (min(value, 2.0 ** (kind.greatest + 1)) for value in pair.tolist())
        middle = (low + high) / 2
        for _ in range(abs(steps)):
            middle = math.nextafter(middle, math.inf if steps > 0 else -math.inf)
        return (-1 if sign else 1) * middle * (1 + share)

    largest = int(torch.tensor(torch.finfo(kind.dtype).max, dtype=kind.dtype).view(torch.int16))
    shares = st.sampled_from([0.0, 2.0**-26, -(2.0**-27), 2.0**-45, -(2.0**-50)])
    return st.builds(beside, st.integers(0, largest), st.integers(-2, 2), shares, st.booleans())


@SIXTEEN
@given(data=st.data())
def test_float64_is_rounded_once(kind: Format, data: st.DataObject) -> None:
    """Any float64 at all, and those next to middles, several in one tensor."""
    values = st.lists(st.floats() | near_middles(kind), min_size=1, max_size=20)
    check(kind, data.draw(values))


@SIXTEEN
def test_every_middle_and_its_neighbours(kind: Format) -> None:
    """Between all neighbours of the format: below goes down, above goes up, the middle to even."""
    infinite = torch.tensor(math.inf, dtype=kind.dtype).view(torch.int16).item()
    patterns = torch.arange(int(infinite), dtype=torch.int16)
    low, high = patterns.view(kind.dtype).double(), (patterns + 1).view(kind.dtype).double()
    high[-1] = 2.0 ** (kind.greatest + 1)  # where it were not infinity
    middle = (low + high) / 2
    even = torch.where(patterns % 2 == 0, patterns, patterns + 1)
    beyond = torch.full_like(middle, math.inf)
    for value, expected in (
        (middle, even),
        (torch.nextafter(middle, beyond), patterns + 1),
        (torch.nextafter(middle, -beyond), patterns),
    ):
        for sign, bit in ((1, 0), (-1, -0x8000)):
            target = torch.empty(value.shape, dtype=kind.dtype)
            round_into(target, sign * value, torch.empty(value.shape, dtype=torch.float32))
            assert torch.equal(target.view(torch.int16), (expected | bit).to(torch.int16))


def test_torch_alone_rounds_twice() -> None:
    """Control: the step through float32 that all this is about does happen."""
    value = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert value.bfloat16().item() == 1.0
    assert rounded(BF16, value.tolist(), torch.float64).item() == 1 + 2.0**-7


@given(st.lists(st.floats(), min_size=1, max_size=20))
def test_float64_to_float32_is_rounded_once(values: list[float]) -> None:
    """The wide output needs no help."""
    check(F32, values)


@SIXTEEN
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_float32_arithmetic_is_rounded_once(kind: Format, values: list[float]) -> None:
    """The fast arithmetic's own rounding."""
    check(kind, values, torch.float32)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.0, -0.0, 1e300, -5e-324])
@SIXTEEN
def test_ends_of_the_scale(kind: Format, value: float) -> None:
    """Infinities, NaN, both zeros, what overflows and what underflows."""
    check(kind, [value, 1.0, value])


def test_matrices_keep_their_places() -> None:
    """Corrections go to the element they belong to, in a matrix as in a list."""
    value = torch.ones(7, 5, dtype=torch.float64)
    value[4, 3] = 1 + 2.0**-8 + 2.0**-40
    target = torch.empty(7, 5, dtype=torch.bfloat16)
    round_into(target, value, torch.empty(7, 5))
    assert target[4, 3].item() == 1 + 2.0**-7
    assert int((target != 1).sum()) == 1
