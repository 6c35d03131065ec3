"""A reversible merge comes apart into the base's own bytes, whatever was merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adaptool import api
from small_pairs import PAIRS, write
from tuner_cases import Case, every_case, make
from unmerging import lost

DTYPES = ("bfloat16", "float16", "float32")
PRECISIONS = ("float64", "float32")


KINDS = [
    torch.bfloat16,
    pytest.param(torch.float16, marks=pytest.mark.slow),
    pytest.param(torch.float32, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@every_case()
def test_every_tuner_comes_apart_exactly(
    case: Case, dtype: torch.dtype, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every byte of the base is back, for every example of every tuner that merges."""
    pair = make(case, tmp_path_factory.getbasetemp(), dtype)
    api.merge(pair.base, pair.adapter, tmp_path / "merged", reversible=True)
    result = api.unmerge(tmp_path / "merged", pair.adapter, tmp_path / "out", exact=True)
    assert result.exact
    assert result.bound == 0
    assert lost(pair.base, tmp_path / "out") == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_every_dtype_and_precision_comes_apart_exactly(
    name: str, dtype: str, precision: str, tmp_path: Path
) -> None:
    """Merged by three threads in either arithmetic, taken apart by one: the base's bytes."""
    pair = write(name, tmp_path, dtype=dtype)
    out = tmp_path / "merged"
    api.merge(pair.base, pair.adapter, out, reversible=True, precision=precision, threads=3)
    api.unmerge(out, pair.adapter, tmp_path / "out", exact=True, threads=1)
    assert lost(pair.base, tmp_path / "out") == []


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_output_dtype_comes_apart_exactly(dtype: str, stored: str, tmp_path: Path) -> None:
    """A base that was written in another dtype, wider or narrower, is back in its own."""
    pair = write("lora", tmp_path, dtype=dtype)
    out = tmp_path / "merged"
    api.merge(pair.base, pair.adapter, out, reversible=True, dtype=stored)
    api.unmerge(out, pair.adapter, tmp_path / "out", exact=True)
    assert lost(pair.base, tmp_path / "out") == []
