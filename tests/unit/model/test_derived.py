"""Tensors made of other tensors: torch says what the moves and sums must give."""

from __future__ import annotations

import pytest
import torch

from adaptool.dtypes import BY_TORCH_NAME, DTYPES
from adaptool.engine.factors import load
from adaptool.errors import InternalError
from adaptool.model import derived
from adaptool.model.view import Span
from adaptool.store.tensors import TensorRef
from memory_source import MemorySource

DTYPES_WITH_NUMBERS = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


def _stored(values: torch.Tensor) -> TensorRef:
    raw = bytes(values.contiguous().reshape(-1).view(torch.uint8).numpy())
    dtype = BY_TORCH_NAME[str(values.dtype).removeprefix("torch.")]
    return TensorRef("t", dtype, tuple(values.shape), 0, len(raw), MemorySource(raw))


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _same(ref: TensorRef, expected: torch.Tensor) -> None:
    found = load(ref)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    left, right = (value.contiguous().reshape(-1).view(torch.uint8) for value in (found, expected))
    assert torch.equal(left, right)
    assert torch.equal(load(ref).reshape(-1).view(torch.uint8), left), "a second reading differs"


@pytest.mark.parametrize("dtype", DTYPES_WITH_NUMBERS)
def test_moves_keep_every_bit_in_every_dtype(dtype: torch.dtype) -> None:
    """Transposed, permuted, sliced, joined, set on a diagonal: the words are the source's."""
    a, b = _random(4, 6, dtype=dtype), _random(3, 6, dtype=dtype, seed=1)
    first, second = _stored(a), _stored(b)
    bits = a.view(torch.uint8).reshape(4, 6, -1)
    _same(derived.transposed(first), a.T)
    _same(derived.reshaped(first, (2, 12)), a.reshape(2, 12))
    _same(derived.permuted(derived.reshaped(first, (2, 2, 6)), (2, 0, 1)), _moved(a))
    _same(derived.taken(first, Span(1, 2), 0), a[1:3])
    taken = load(derived.taken(first, Span(0, 1, 1, 3, 2), 1)).view(torch.uint8)
    assert torch.equal(taken.reshape(4, 3, -1), bits[:, ::2])
    joined = load(derived.joined([first, second], 0)).view(torch.uint8)
    assert torch.equal(joined, torch.cat([a.view(torch.uint8), b.view(torch.uint8)]))
    diagonal = load(derived.block_diagonal([first, second])).double()
    assert torch.equal(diagonal, torch.block_diag(a.double(), b.double()))
    padded = load(derived.padded(second, 5, 0)).double()
    assert torch.equal(padded, torch.cat([b.double(), torch.zeros(2, 6, dtype=torch.float64)]))


def _moved(a: torch.Tensor) -> torch.Tensor:
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    moved = a.view(words).reshape(2, 2, 6).permute(2, 0, 1).contiguous()
    return moved.view(a.dtype)


@pytest.mark.parametrize("dtype", DTYPES_WITH_NUMBERS)
def test_every_word_of_every_float_dtype_becomes_its_number(dtype: torch.dtype) -> None:
    """All 256 or 65536 words; of the wide dtypes random ones, infinities and subnormals."""
    size = torch.empty(0, dtype=dtype).element_size()
    if size <= 2:
        kind = torch.uint8 if size == 1 else torch.int16
        low = 0 if size == 1 else -(2**15)
        values = torch.arange(low, low + 2 ** (8 * size)).to(kind).view(dtype)
    else:
        tiny = torch.finfo(dtype).tiny / 4
        values = torch.tensor([0.0, -0.0, tiny, float("inf"), float("nan"), 1 / 3], dtype=dtype)
    found = load(derived.float64(_stored(values)))
    expected = values.float().double() if size < 4 else values.double()
    assert torch.equal(torch.nan_to_num(found, nan=7.0), torch.nan_to_num(expected, nan=7.0))
    assert torch.equal(found.isnan(), expected.isnan())


def test_sums_are_taken_in_float64() -> None:
    """A weighted sum of mixed dtypes equals torch's in float64."""
    a, b = _random(5, 7, dtype=torch.bfloat16), _random(5, 7, seed=1)
    found = load(derived.weighted_sum([(0.3, _stored(a)), (-2.0, _stored(b))]))
    assert torch.equal(found, a.double() * 0.3 + b.double() * -2.0)
    assert derived.scaled(ref := _stored(b), 1.0) is ref


def test_tensors_of_different_dtypes_are_joined_in_float64() -> None:
    """No dtype is narrowed in passing."""
    a, b = _random(2, 3, dtype=torch.bfloat16), _random(2, 3, seed=1)
    ref = derived.joined([_stored(a), _stored(b)], 1)
    assert ref.dtype is DTYPES["F64"]
    _same(ref, torch.cat([a.double(), b.double()], dim=1))


def test_neighbours_in_one_file_are_joined_without_a_copy() -> None:
    """Rows that follow each other in a file stay a plain range of it."""
    whole = _stored(_random(6, 4))
    halves = [
        TensorRef("h", whole.dtype, (3, 4), place * 48, 48, whole.source) for place in range(2)
    ]
    joined = derived.joined(halves, 0)
    assert joined.source is whole.source
    assert joined.shape == (6, 4)


def test_constants_and_zeros_have_no_parents() -> None:
    """What stands in the plan is written as float32; leaves lead to stored tensors only."""
    number = derived.constant("alpha", [16.0])
    _same(number, torch.tensor(16.0))
    stored = _stored(_random(2, 2))
    made = derived.joined(
        [derived.scaled(stored, 2.0), derived.zeros("z", stored.dtype, (1, 2))], 0
    )
    assert list(derived.leaves(made)) == [stored]


def test_a_reader_may_take_a_tensor_in_pieces() -> None:
    """Pieces in any order give the bytes of the whole; then nothing is kept."""
    ref = derived.transposed(_stored(a := _random(64, 32)))
    found = bytearray(ref.length)
    for start in (4096, 0):
        ref.source.read_into(start, memoryview(found)[start : start + 4096])
    assert bytes(found) == a.T.contiguous().numpy().tobytes()
    assert ref.source._value is None  # type: ignore[attr-defined]  # noqa: SLF001


def test_a_shape_of_another_size_is_our_own_mistake() -> None:
    """Exit 70, not garbage."""
    with pytest.raises(InternalError):
        derived.reshaped(_stored(_random(2, 3)), (4, 2))
