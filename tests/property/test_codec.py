"""The codec of reversible merges gives the base's bits back, on whatever device it is run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptool.engine.bits import FORMATS, Format, float_values, most_steps, ordered, rounded_bits
from adaptool.engine.codec import (
    Marks,
    decode_plain,
    decode_sparse,
    decode_xor,
    encode_plain,
    encode_sparse,
    encode_xor,
    mark,
    mark_rounded,
    middles,
    suspects,
)

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
Array = np.ndarray[Any, np.dtype[Any]]

each_format = pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
sizes = st.floats(-12, 1).map(lambda power: 10.0**power)


def drawn(seed: int, size: float, form: Format, count: int = 3000) -> tuple[Array, Array]:
    """Bits of random weights, some of them zero or a power of two, and a delta in float64."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal(count) * 0.02
    weights[::50] = 0
    weights[1::50] = 2.0 ** random.integers(-12, 0, len(weights[1::50]))
    delta = random.standard_normal(count) * 0.02 * size
    delta[2::70] = 0
    delta[3::90] = -weights[3::90]
    return rounded_bits(weights, form), delta


def _there_and_back(form: Format, bits: Array, delta: Array, device: Array, inline: bool) -> Array:
    """Encoded from the merge's own tiles or by subtracting, decoded where sums end otherwise."""
    exact = float_values(bits, form) + delta
    merged = rounded_bits(exact, form)
    if inline:
        marks = suspects(bits, merged, exact, middles(exact, form), form).marks(form)
    else:
        values = float_values(merged, form) - delta
        near = middles(values, form)
        there = rounded_bits(values, form)
        marks = mark_rounded(bits, merged, values, form, rounded=there, middles=near)
    stream = encode_sparse(marks)
    there = rounded_bits((float_values(merged, form) - delta) * device, form)
    if not stream:
        return there
    found = decode_sparse(stream, there, merged, form)
    assert found is not None
    return found


@each_format
@pytest.mark.parametrize("inline", [True, False], ids=["watched", "subtracted"])
@given(seed=st.integers(0, 10**6), size=sizes)
@settings(max_examples=60, deadline=None)
def test_every_bit_comes_back(form: Format, inline: bool, seed: int, size: float) -> None:
    """From deltas that vanish to deltas of ten times the weights."""
    bits, delta = drawn(seed, size, form)
    found = _there_and_back(form, bits, delta, np.float64(1), inline)
    assert np.array_equal(found, bits)


@each_format
@pytest.mark.parametrize("inline", [True, False], ids=["watched", "subtracted"])
@given(seed=st.integers(0, 10**6), size=sizes)
@settings(max_examples=60, deadline=None)
def test_a_device_with_other_last_digits_decodes_the_same(
    form: Format, inline: bool, seed: int, size: float
) -> None:
    """Sums that end 2^-50 apart, as another BLAS or a GPU has them."""
    bits, delta = drawn(seed, size, form)
    noise = 1 + 2.0**-50 * np.random.default_rng(seed).integers(-1, 2, len(bits))
    assert np.array_equal(_there_and_back(form, bits, delta, noise, inline), bits)


@each_format
def test_ties_are_exceptions(form: Format) -> None:
    """A value that lies on the middle of two numbers is stored, not left to the device."""
    bits = rounded_bits(np.array([1.0, 1.5]), form)
    step = 2.0**-form.mantissa
    values = np.array([1 + step / 2, 1.5 + step / 2])
    marks = mark(bits, bits, values, form)
    assert marks.places.tolist() == [0, 1]
    found = suspects(bits, bits, values, middles(values, form), form)
    assert found.places.tolist() == [0, 1]


@each_format
@given(
    st.lists(
        st.floats(-6e4, 6e4, allow_nan=False, width=64)
        | st.floats(-1e-6, 1e-6, allow_nan=False, width=64),
        min_size=1,
    )
)
def test_rounding_is_torchs_where_torch_rounds_once(form: Format, numbers: list[float]) -> None:
    """Values that float32 holds: torch's conversion is right for them."""
    values = np.array(numbers, np.float32).astype(np.float64)
    expected = torch.from_numpy(values).to(TORCH[form.name]).view(torch.uint8).numpy()
    assert np.array_equal(rounded_bits(values, form).view(np.uint8), expected.reshape(-1))


def test_a_value_beside_a_middle_is_rounded_once() -> None:
    """1 + 2^-8 + 2^-40 is above the middle of two bf16 numbers; through float32 it would tie."""
    values = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40])
    assert rounded_bits(values, FORMATS["BF16"]).tolist() == [0x3F81, 0x3F80]


@each_format
@given(seed=st.integers(0, 10**6), size=sizes)
@settings(max_examples=60, deadline=None)
def test_no_element_is_farther_than_the_bound(form: Format, seed: int, size: float) -> None:
    """Subtracting alone: the worst element is within `most_steps` of the base's."""
    bits, delta = drawn(seed, size, form)
    merged = float_values(rounded_bits(float_values(bits, form) + delta, form), form)
    found = rounded_bits(merged - delta, form)
    apart = ordered(found, form).astype(np.int64) - ordered(bits, form)
    assert np.abs(apart).max() <= most_steps(merged, merged - delta, form)


@given(st.binary(max_size=400), st.sampled_from([1, 2, 4]))
def test_dense_blocks_come_back(content: bytes, width: int) -> None:
    """Byte planes, deflated, as they are or as a difference."""
    content = content[: len(content) // width * width]
    other = bytes(reversed(content))
    assert decode_xor(encode_xor(content, other, width), other, width) == content
    assert decode_plain(encode_plain(content, width), len(content), width) == content


@given(st.binary(max_size=200), st.binary(max_size=64))
def test_foreign_streams_are_refused_not_followed(stream: bytes, content: bytes) -> None:
    """Whatever stands in a stream: bits of the right length, or None."""
    form = FORMATS["BF16"]
    bits = np.frombuffer(content[: len(content) // 2 * 2], form.pattern)
    found = decode_sparse(stream, bits, bits[::-1].copy(), form)
    assert found is None or len(found) == len(bits)
    plain = decode_plain(stream, len(content), 1)
    assert plain is None or len(plain) == len(content)


@given(seed=st.integers(0, 1000), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_stream_ends_in_bits_or_none(seed: int, place: int, bit: int) -> None:
    """No flipped bit raises; digests tell the rest."""
    form = FORMATS["BF16"]
    bits, delta = drawn(seed, 0.1, form, 500)
    merged = rounded_bits(float_values(bits, form) + delta, form)
    values = float_values(merged, form) - delta
    stream = bytearray(encode_sparse(mark(bits, merged, values, form)))
    stream[place % len(stream)] ^= 1 << bit
    found = decode_sparse(bytes(stream), rounded_bits(values, form), merged, form)
    assert found is None or len(found) == len(bits)


@each_format
@given(count=st.integers(0, 40), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_suspects_are_found_at_their_places(
    form: Format, count: int, share: float, seed: int
) -> None:
    """Whatever lies in a higher binade once it is merged, in runs of any length; nothing else."""
    higher = np.random.default_rng(seed).random(count) < share
    true = rounded_bits(np.full(count, 1.5), form)
    exact = np.where(higher, 3.0, 1.5)
    found = suspects(true, rounded_bits(exact, form), exact, np.arange(0), form)
    assert np.array_equal(found.places, np.flatnonzero(higher))
    assert np.array_equal(found.exact, exact[higher])


def test_marks_are_cut_at_blocks() -> None:
    """Each block's marks count from its own beginning."""
    marks = Marks(*(np.array(each) for each in ([1, 5], [7, 8], [2, 6], [1, -1], [1, 2])))
    second = marks.between(4, 8)
    assert (second.places.tolist(), second.bits.tolist()) == ([1], [8])
    assert (second.candidates.tolist(), second.codes.tolist()) == ([2], [-1])
