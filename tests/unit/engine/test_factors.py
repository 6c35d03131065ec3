"""Factors are loaded once where they are shared, and let go of where there are many."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from adaptool.engine import factors as keeping
from adaptool.engine.arithmetic import Arithmetic
from adaptool.engine.factors import FactorStore
from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from plan_rows import placed

EXACT = Arithmetic(torch.device("cpu"), torch.float64, exact=True, workers=1, tile_elements=1)


@dataclass
class CountingSource:
    """Bytes in memory that remember where they were read."""

    content: bytes
    name: str = "adapter.safetensors"
    reads: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill, and remember."""
        self.reads.append(offset)
        buffer[:] = self.content[offset : offset + buffer.nbytes]

    def close(self) -> None:
        """Nothing to let go of."""


def source_of(count: int) -> CountingSource:
    """Tensors of 4 float32 numbers each; tensor k holds k, k, k, k."""
    return CountingSource(np.repeat(np.arange(count, dtype="<f4"), 4).tobytes())


def delta(source: CountingSource, place: int) -> Delta:
    """The delta whose only factor is tensor `place`."""
    factor = placed(source, "F32", (2, 2), name=f"lora_{place}", offset=16 * place)
    return Delta("m", "m.weight", "lora", {"A": factor}, Terms(Form.LINEAR, 2, 2, 1.0))


def test_factors_arrive_in_the_arithmetics_dtype() -> None:
    """By role, converted once."""
    found = FactorStore(EXACT).factors(delta(source_of(5), 3))
    assert found["A"].dtype is torch.float64
    assert found["A"].tolist() == [[3, 3], [3, 3]]


def test_shared_factor_is_read_once() -> None:
    """All rows of a stack of experts ask for the same tensor."""
    source, store = source_of(2), None
    store = FactorStore(EXACT)
    first = store.factors(delta(source, 1))["A"]
    assert store.factors(delta(source, 1))["A"] is first
    assert source.reads == [16]


def test_tensors_at_the_same_offset_of_other_files_are_others() -> None:
    """Two adapters of one merge look alike on disk."""
    store = FactorStore(EXACT)
    other = CountingSource(bytes(64))
    assert store.factors(delta(source_of(2), 1))["A"].sum() == 4
    assert store.factors(delta(other, 1))["A"].sum() == 0


def test_oldest_factors_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the budget all are kept; beyond it those that were not asked for longest go."""
    count = keeping.KEPT_ALWAYS + 3
    monkeypatch.setattr(keeping, "KEPT_BYTES", 32 * (count - 1))  # 4 numbers in float64 are 32
    source, store = source_of(count), FactorStore(EXACT)
    for place in range(count - 1):
        store.factors(delta(source, place))
    store.factors(delta(source, 0))
    assert len(source.reads) == count - 1
    store.factors(delta(source, count - 1))  # one too many: 1 goes, since 0 was asked for again
    source.reads.clear()
    store.factors(delta(source, 0))
    assert source.reads == []
    store.factors(delta(source, 1))
    assert source.reads == [16]


def test_latest_factors_stay_whatever_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair larger than the budget is still not read for every row of its module."""
    monkeypatch.setattr(keeping, "KEPT_BYTES", 1)
    source, store = source_of(20), FactorStore(EXACT)
    latest = range(20 - keeping.KEPT_ALWAYS, 20)
    for place in range(20):
        store.factors(delta(source, place))
    source.reads.clear()
    for place in latest:
        store.factors(delta(source, place))
    assert source.reads == []
    store.factors(delta(source, 0))
    assert source.reads == [0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_factor_that_is_not_finite_is_refused_by_name(value: float) -> None:
    """Count, first index and tensor, before a single byte of the model is computed with it."""
    numbers = np.array([1, 2, value, value], "<f4")
    source = CountingSource(numbers.tobytes())
    with pytest.raises(InputError) as caught:
        FactorStore(EXACT).factors(delta(source, 0))
    assert caught.value.code is Code.NOT_FINITE
    assert (caught.value.tensor, caught.value.file) == ("lora_0", "adapter.safetensors")
    assert "2 of 4 values" in caught.value.message
    assert caught.value.message.endswith("the first at 2")


def test_large_finite_factors_are_no_infinity() -> None:
    """A sum that overflows float32 is no reason to refuse."""
    source = CountingSource(np.full(4, 3e38, "<f4").tobytes())
    assert FactorStore(EXACT).factors(delta(source, 0))["A"].max() > 2e38
