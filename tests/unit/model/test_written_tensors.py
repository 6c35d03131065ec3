"""What is written: names once, parts of sums as the whole sum has them, values looked at."""

from __future__ import annotations

import numpy as np
import pytest

from adaptool.dtypes import DTYPES
from adaptool.errors import InputError, InternalError
from adaptool.model.derived import F64, array, weighted_sum
from adaptool.model.encoding import Written, in_safetensors
from adaptool.model.finite import finite
from adaptool.store.stored_twice import stored_twice
from adaptool.store.tensors import TensorRef
from memory_source import MemorySource


def _stored(values: np.ndarray, name: str = "t") -> TensorRef:
    raw = values.astype("<f4").tobytes()
    return TensorRef(name, DTYPES["F32"], values.shape, 0, len(raw), MemorySource(raw))


def test_two_tensors_of_one_name_are_a_bug() -> None:
    """Exit 70 where the header is made, in place of a file that holds the last of them."""
    twice = [Written("a", _stored(np.ones(2)), F64), Written("a", _stored(np.zeros(2)), F64)]
    with pytest.raises(InternalError, match="two tensors of this name"):
        in_safetensors("x.safetensors", twice, {})


@pytest.mark.parametrize(("offset", "length"), [(0, 40), (8, 16), (3, 10), (37, 3), (16, 0)])
def test_any_part_of_a_sum_is_that_of_the_whole(offset: int, length: int) -> None:
    """Whatever a reader asks for, in the middle of an element too."""
    ref = weighted_sum([(0.5, _stored(np.arange(5))), (-2.0, _stored(np.arange(5, 10)))])
    whole = array(ref).tobytes()
    assert np.array_equal(array(ref).view("<f8"), 0.5 * np.arange(5) - 2.0 * np.arange(5, 10))
    part = bytearray(length)
    ref.source.read_into(offset, memoryview(part))
    assert bytes(part) == whole[offset : offset + length]


def test_a_value_that_is_not_finite_names_the_tensor_that_holds_it() -> None:
    """Of a sum the summand, and the place there; parts without it are read."""
    bad = np.arange(6, dtype=np.float64)
    bad[4] = np.nan
    ref = finite(weighted_sum([(1.0, _stored(np.ones(6))), (1.0, _stored(bad, "bad"))]))
    ref.source.read_into(0, memoryview(bytearray(32)))
    with pytest.raises(InputError, match="the first at 4") as caught:
        array(ref)
    assert caught.value.tensor == "bad"


def test_a_tensor_under_two_names_is_compared_as_it_is_read() -> None:
    """Equal values read as one, others raise where they differ, and shapes at once."""
    values = np.arange(6, dtype=np.float64)
    other = values.copy()
    other[5] = 0
    same = stored_twice(_stored(values, "a"), _stored(values, "b"))
    assert np.array_equal(array(same).view("<f4"), values)
    differing = stored_twice(_stored(values, "a"), _stored(other, "b"))
    differing.source.read_into(0, memoryview(bytearray(16)))
    with pytest.raises(InputError, match="'b'"):
        array(differing)
    with pytest.raises(InputError, match=r"\[2, 3\]"):
        stored_twice(_stored(values, "a"), _stored(values.reshape(2, 3), "b"))
