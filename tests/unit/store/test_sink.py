"""Placing bytes in a file of known size."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import pytest

from adaptool.errors import IntegrityError, InternalError, OutputError
from adaptool.findings import Code
from adaptool.store import sink as sink_module
from adaptool.store.disk import Disk
from adaptool.store.local import LocalSource
from adaptool.store.sink import FileSink, Sink
from faulty_disk import FaultyDisk
from memory_source import MemorySource


def open_sink(path: Path, size: int, disk: Disk | None = None) -> FileSink:
    return FileSink.open(disk or Disk(), path, path.name, size)


def test_places_are_filled_in_any_order_by_threads(tmp_path: Path) -> None:
    """The content does not depend on who writes when."""
    sink: Sink = open_sink(tmp_path / "file", 80_000)
    blocks = [bytes([number]) * 10_000 for number in range(8)]
    threads = [
        Thread(target=sink.write, args=(number * 10_000, memoryview(block)))
        for number, block in enumerate(blocks)
    ]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    sink.finish()
    assert (tmp_path / "file").read_bytes() == b"".join(blocks)


def test_chunks_of_wider_items_are_bytes(tmp_path: Path) -> None:
    """A view of floats is written as its bytes."""
    sink = open_sink(tmp_path / "file", 8)
    sink.write(0, memoryview(bytes(range(8))).cast("f"))
    sink.finish()
    assert (tmp_path / "file").read_bytes() == bytes(range(8))


@pytest.mark.parametrize("lacking", [{}, {"copy_range": 0}], ids=["kernel", "memory"])
@pytest.mark.parametrize("kind", ["local", "remote"])
def test_copies_reach_their_place(
    tmp_path: Path, kind: str, lacking: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the kernel or through memory, in several blocks."""
    monkeypatch.setattr(sink_module, "COPY_BLOCK", 1000)
    monkeypatch.setattr(sink_module, "KERNEL_COPY_BLOCK", 1000)
    content = os.urandom(5_500)
    (tmp_path / "source").write_bytes(content)
    local = LocalSource(tmp_path / "source")
    disk = FaultyDisk(lacking=lacking)
    sink = open_sink(tmp_path / "file", 6_000, disk)
    sink.copy_from(local if kind == "local" else MemorySource(content), 100, 600, 5_400)
    sink.finish()
    local.close()
    assert (tmp_path / "file").read_bytes() == bytes(600) + content[100:]
    assert ("copy_range" in disk.operations) is (kind == "local")


def test_source_that_became_shorter_is_named(tmp_path: Path) -> None:
    """The input is at fault, not the output."""
    (tmp_path / "source").write_bytes(bytes(100))
    with LocalSource(tmp_path / "source") as source:
        os.truncate(tmp_path / "source", 50)
        sink = open_sink(tmp_path / "file", 100)
        with pytest.raises(IntegrityError) as caught:
            sink.copy_from(source, 0, 0, 100)
    assert caught.value.code is Code.FILE_CHANGED
    assert "source" in (caught.value.file or "")
    sink.abandon()


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 11), (10, 1), (5, 6)])
def test_bytes_outside_the_plan_are_a_bug(tmp_path: Path, offset: int, length: int) -> None:
    """The header is written already: nothing may move."""
    sink = open_sink(tmp_path / "file", 10)
    with pytest.raises(InternalError, match="10 planned bytes"):
        sink.write(offset, memoryview(bytes(length)))
    with pytest.raises(InternalError):
        sink.copy_from(MemorySource(bytes(99)), 0, offset, length)
    sink.abandon()


def test_writing_after_finishing_is_a_bug(tmp_path: Path) -> None:
    """Its bytes would not be durable; finishing twice is fine."""
    sink = open_sink(tmp_path / "file", 10)
    sink.finish()
    sink.finish()
    assert sink.finished
    with pytest.raises(InternalError):
        sink.write(0, memoryview(b"a"))


def test_what_was_written_can_be_read_back(tmp_path: Path) -> None:
    """Also where nothing was written yet."""
    sink = open_sink(tmp_path / "file", 10)
    sink.write(3, memoryview(b"abc"))
    buffer = bytearray(8)
    sink.read_into(1, memoryview(buffer))
    assert buffer == b"\0\0abc\0\0\0"
    sink.abandon()


def test_file_cut_by_somebody_is_an_error(tmp_path: Path) -> None:
    """Reading back does not wait for bytes that never come."""
    sink = open_sink(tmp_path / "file", 10)
    os.truncate(tmp_path / "file", 5)
    with pytest.raises(OutputError) as caught:
        sink.read_into(0, memoryview(bytearray(10)))
    assert caught.value.code is Code.READ_FAILED
    sink.abandon()


@pytest.mark.parametrize("size", [0, 3_000, 10_000, 20_000])
def test_resumed_file_is_patched_whatever_it_held(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shorter, longer, right in parts: the result is what was placed."""
    monkeypatch.setattr(sink_module, "PATCH_BLOCK", 1000)
    content = os.urandom(10_000)
    (tmp_path / "file").write_bytes((content[:2_000] + os.urandom(size))[:size])
    disk = FaultyDisk()
    sink = open_sink(tmp_path / "file", 10_000, disk)
    assert sink.resumed is (size > 0)
    sink.write(0, memoryview(content[:4_000]))
    sink.copy_from(MemorySource(content), 4_000, 4_000, 6_000)
    sink.finish()
    assert (tmp_path / "file").read_bytes() == content
    if size >= 10_000:
        assert disk.operations.count("pwrite") == 8


def test_resumed_file_with_a_second_name_is_not_written_into(tmp_path: Path) -> None:
    """The other name may be somebody's file."""
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "file").hardlink_to(tmp_path / "theirs")
    sink = open_sink(tmp_path / "file", 6)
    sink.write(0, memoryview(b"ours!!"))
    sink.finish()
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert (tmp_path / "file").read_bytes() == b"ours!!"
