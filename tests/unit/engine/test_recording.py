"""Blocks of a reversible merge: the same whatever the tiles, digested from what was seen."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptool.dtypes import DTYPES
from adaptool.engine.bits import FORMATS, float_values, rounded_bits
from adaptool.engine.codec import decode_sparse, mark, middles, suspects
from adaptool.engine.recording import Coded, MergeWatch, Recorder, Seen
from adaptool.engine.tiles import CopyJob
from adaptool.model.plan import Row
from adaptool.model.reversal import Restoration
from adaptool.store.sidecar import BLOCK_BYTES, Coding, Way
from adaptool.store.spill import Spill
from adaptool.store.tensors import TensorRef
from memory_source import MemorySource

Array = np.ndarray[Any, np.dtype[Any]]
BF16 = FORMATS["BF16"]
COUNT = BLOCK_BYTES // 2 * 2 + 12_345  # two whole blocks and a part of a third


def restoration(way: Way, count: int, offset: int = 0, source: MemorySource | None = None) -> Any:
    """A tensor of `count` bf16 numbers, in a row of the same name and place."""
    held = source or MemorySource(b"")
    dtype, name = DTYPES["BF16"], f"at-{offset}"
    ref = TensorRef(name, dtype, (count,), offset, count * 2, held)
    row = Row(name, dtype, (count,), "out.safetensors", offset, count * 2, ref)
    return Restoration(ref, way, row)


def numbers() -> tuple[Array, Array, Array]:
    """True bits, what a small delta makes of them before rounding, and after."""
    generator = np.random.default_rng(1)
    true = rounded_bits(generator.standard_normal(COUNT) * 0.02, BF16)
    exact = float_values(true, BF16) + generator.standard_normal(COUNT) * 2e-4
    return true, exact, rounded_bits(exact, BF16)


def cuts(seed: int) -> list[tuple[int, int]]:
    """The elements in tiles of any size, in any order."""
    chance = random.Random(seed)
    edges = sorted({0, COUNT, *(chance.randrange(COUNT) for _ in range(9))})
    found = list(itertools.pairwise(edges))
    chance.shuffle(found)
    return found


def sha(content: Array) -> str:
    return hashlib.sha256(content.tobytes()).hexdigest()[:32]


def streams(coded: Sequence[Coded]) -> list[bytes]:
    found = []
    for one in coded:
        buffer = bytearray(one.block.length)
        one.source.read_into(one.offset, memoryview(buffer))
        found.append(bytes(buffer))
    return found


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "subtracted"])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_give_the_base_back_whatever_the_tiles(
    seed: int, watched: bool, tmp_path: Path
) -> None:
    """Digests are hashlib's of each block; streams correct what subtraction gives."""
    true, exact, merged = numbers()
    values = float_values(merged, BF16) - (exact - float_values(true, BF16))
    with Spill(tmp_path) as spill:
        recorder = Recorder({"at-0": restoration(Way.SUBTRACTED, COUNT)}, spill)
        for start, stop in cuts(seed):
            run = slice(start, stop)
            part: Any = mark(true[run], merged[run], values[run], BF16)
            if watched:
                near = middles(exact[run], BF16)
                part = suspects(true[run], merged[run], exact[run], near, BF16)
            recorder.take("at-0", start, Seen(true[run].data, merged[run].data, part))
        coded = recorder.coded()["at-0"]
        kept = streams(coded)
    step = BLOCK_BYTES // 2
    assert len(coded) == 3
    for place, (one, stream) in enumerate(zip(coded, kept, strict=True)):
        block = slice(place * step, (place + 1) * step)
        assert one.block.base == sha(true[block])
        assert one.block.merged == sha(merged[block])
        assert one.block.stream == hashlib.sha256(stream).hexdigest()[:32]
        predicted = rounded_bits(values[block], BF16)
        assert not np.array_equal(predicted, true[block])
        found = decode_sparse(stream, predicted, merged[block], BF16)
        assert found is not None
        assert np.array_equal(found, true[block])


class _Nowhere:
    """An outlet that takes everything."""

    def fill(self, row: Row, start: int, content: memoryview) -> None:
        """Nothing."""

    def copy(self, job: CopyJob) -> None:
        """Nothing."""


def test_copied_tensors_are_digested_from_the_jobs_that_copy_them(tmp_path: Path) -> None:
    """Jobs that begin and end anywhere in a run of tensors: hashlib's digest of each block."""
    sizes = [COUNT, 7, 3 * 1024 * 1024]
    content = np.random.default_rng(2).bytes(sum(sizes) * 2)
    source = MemorySource(content)
    starts = [2 * sum(sizes[:place]) for place in range(len(sizes))]
    ones = [
        restoration(Way.COPIED, size, start, source)
        for size, start in zip(sizes, starts, strict=True)
    ]
    rows = tuple(one.row for one in ones)
    edges = [0, 1_000_001, 6_000_000, len(content)]
    with Spill(tmp_path) as spill:
        recorder = Recorder({one.row.name: one for one in ones}, spill)
        watch = MergeWatch(_Nowhere(), recorder)
        for start, stop in reversed(list(itertools.pairwise(edges))):
            watch.copy(CopyJob("out.safetensors", source, start, start, stop - start, rows))
        coded = recorder.coded()
    for one in ones:
        base = one.base
        whole = np.frombuffer(content, np.uint8)[base.offset : base.offset + base.length]
        expected = [sha(whole[at : at + BLOCK_BYTES]) for at in range(0, len(whole), BLOCK_BYTES)]
        assert [each.block.base for each in coded[base.name]] == expected
        assert [each.block.merged for each in coded[base.name]] == expected
        assert {each.block.coding for each in coded[base.name]} == {Coding.NOTHING}
