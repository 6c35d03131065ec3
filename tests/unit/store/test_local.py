"""Local files as sources."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adaptool.errors import IntegrityError, OutputError, ResourceError, UsageError
from adaptool.findings import Code
from adaptool.store.local import LocalSource


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)))
    return path


def test_read_gives_the_bytes_asked_for(file: Path) -> None:
    """`read` returns what lies at the offset."""
    with LocalSource(file) as source:
        assert source.size == 256
        assert source.read(10, 3) == b"\x0a\x0b\x0c"
        assert source.read(256, 0) == b""


def test_read_into_fills_the_buffer_despite_short_reads(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that returns one byte at a time still fills the whole buffer."""
    real = os.preadv

    def one_byte(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real(fd, [buffers[0][:1]], offset)

    with LocalSource(file) as source:
        monkeypatch.setattr("adaptool.store.local.os.preadv", one_byte)
        assert source.read(250, 6) == bytes(range(250, 256))


def test_read_works_without_preadv(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no preadv, pread gives the same bytes."""
    with LocalSource(file) as source:
        monkeypatch.delattr("adaptool.store.local.os.preadv")
        assert source.read(1, 255) == bytes(range(1, 256))


def test_read_into_takes_any_item_size(file: Path) -> None:
    """A buffer of 4-byte items is filled by bytes."""
    buffer = bytearray(8)
    with LocalSource(file) as source:
        source.read_into(0, memoryview(buffer).cast("I"))
    assert buffer == bytes(range(8))


def test_name_is_the_path_as_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages call a source what the user called it, or what the caller says."""
    monkeypatch.chdir(file.parent)
    with LocalSource(Path("weights")) as source, LocalSource(file, "hf://o/n") as other:
        assert source.name == "weights"
        assert other.name == "hf://o/n"


def test_close_twice_closes_once(file: Path) -> None:
    """Closing again does not close somebody else's descriptor."""
    source = LocalSource(file)
    source.close()
    other = os.open(file, os.O_RDONLY)
    source.close()
    os.fstat(other)
    os.close(other)


def test_descriptor_is_not_inherited(file: Path) -> None:
    """A child process does not get the file."""
    with LocalSource(file) as source:
        assert not os.get_inheritable(source.fd)


def test_advise_leaves_the_bytes(file: Path) -> None:
    """Advice to the kernel changes nothing that is read."""
    with LocalSource(file) as source:
        source.advise(0, 256)
        assert source.read(0, 1) == b"\0"


def test_unchanged_file_passes(file: Path) -> None:
    """A file nobody touched is unchanged."""
    with LocalSource(file) as source:
        source.check_unchanged()


def test_grown_file_is_reported_with_both_sizes(file: Path) -> None:
    """An append shows as both sizes."""
    with LocalSource(file) as source:
        file.write_bytes(bytes(300))
        with pytest.raises(IntegrityError, match="it had 256 bytes and has 300") as caught:
            source.check_unchanged()
    assert caught.value.code is Code.FILE_CHANGED


def test_file_modified_in_place_is_reported(file: Path) -> None:
    """The same size with another modification time is a change."""
    with LocalSource(file) as source:
        os.utime(file, ns=(1, 1))
        with pytest.raises(IntegrityError, match="modification time"):
            source.check_unchanged()


def test_replaced_file_is_reported(file: Path, tmp_path: Path) -> None:
    """Another file under the same name, size and time is a change."""
    with LocalSource(file) as source:
        other = tmp_path / "other"
        other.write_bytes(bytes(256))
        status = file.stat()
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(file)
        with pytest.raises(IntegrityError, match="another file"):
            source.check_unchanged()


def test_removed_file_is_reported(file: Path) -> None:
    """A file that is gone is a change, though its bytes can still be read."""
    with LocalSource(file) as source:
        file.unlink()
        with pytest.raises(IntegrityError, match="removed"):
            source.check_unchanged()


def test_missing_directory_is_named(tmp_path: Path) -> None:
    """Where the parent is missing, the message says so instead of guessing names."""
    with pytest.raises(UsageError) as caught:
        LocalSource(tmp_path / "no" / "weights")
    assert caught.value.code is Code.NOT_FOUND
    assert str(tmp_path / "no") in caught.value.message


def test_file_used_as_a_directory_is_not_found(file: Path) -> None:
    """`weights/x`, where `weights` is a file, is a path to nothing."""
    with pytest.raises(UsageError) as caught:
        LocalSource(file / "x")
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["long", "nul"])
def test_impossible_name_is_not_found(tmp_path: Path, name: str) -> None:
    """Names no file can have are not found, not a crash."""
    with pytest.raises(UsageError) as caught:
        LocalSource(tmp_path / name)
    assert caught.value.code is Code.NOT_FOUND


def test_directory_is_a_usage_error(tmp_path: Path) -> None:
    """A directory where a file is needed is the caller's mistake."""
    with pytest.raises(UsageError) as caught:
        LocalSource(tmp_path)
    assert caught.value.code is Code.NOT_REGULAR_FILE


def test_running_out_of_descriptors_is_a_limit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE gives exit 7 and the limit to raise."""

    def full(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("adaptool.store.local.os.open", full)
    with pytest.raises(ResourceError) as caught:
        LocalSource(file)
    assert caught.value.code is Code.LIMIT_EXCEEDED
    assert caught.value.hint is not None
    assert "ulimit -n" in caught.value.hint


def test_file_swapped_for_a_pipe_is_refused_and_closed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that takes the file's place between the two looks neither blocks nor leaks."""
    opened = []
    real = os.open

    def swapped(path: Path, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        opened.append(real(path, flags))
        return opened[0]

    monkeypatch.setattr("adaptool.store.local.os.open", swapped)
    with pytest.raises(Exception, match="is a pipe"):
        LocalSource(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_dangling_link_names_its_target(tmp_path: Path) -> None:
    """A link to nothing is no missing argument: the target is named."""
    link = tmp_path / "link"
    link.symlink_to("blobs/0123")
    with pytest.raises(OutputError, match="blobs/0123") as caught:
        LocalSource(link)
    assert caught.value.code is Code.NOT_READABLE
