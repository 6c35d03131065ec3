"""A sink against a bytearray."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from adaptool.store.disk import Disk
from adaptool.store.sink import FileSink
from memory_source import MemorySource

SIZE = 300
PLACEMENTS = st.lists(st.tuples(st.integers(0, SIZE), st.binary(max_size=80), st.booleans()))


@given(placements=PLACEMENTS, left=st.none() | st.binary(max_size=2 * SIZE))
def test_sink_holds_what_was_placed_last(
    placements: list[tuple[int, bytes, bool]], left: bytes | None
) -> None:
    """Written or copied, new or resumed over any bytes: each place holds what came last."""
    expected, untouched = bytearray(SIZE), bytearray(b"\1" * SIZE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        if left is not None:
            path.write_bytes(left)
        sink = FileSink.open(Disk(), path, "file", SIZE)
        for offset, chunk, copied in placements:
            part = chunk[: SIZE - offset]
            if copied:
                sink.copy_from(MemorySource(b"x" + chunk), 1, offset, len(part))
            else:
                sink.write(offset, memoryview(part))
            expected[offset : offset + len(part)] = part
            untouched[offset : offset + len(part)] = bytes(len(part))
        sink.finish()
        content = path.read_bytes()
    assert len(content) == SIZE
    if left is None:
        untouched = bytearray(SIZE)
    assert all(c == e for c, e, free in zip(content, expected, untouched, strict=True) if not free)
