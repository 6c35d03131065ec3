"""What files that are no safetensors files are taken for."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile

import pytest

from adaptool.findings import Code
from adaptool.store.magic import SNIFFED_BYTES, foreign


def zipped(name: str) -> bytes:
    """A zip archive with one member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"content")
    return buffer.getvalue()


def tarred() -> bytes:
    """A tar archive with one member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (zipped("archive/data.pkl"), Code.PICKLE_FILE),
        (zipped("weight.npy"), Code.FOREIGN_FORMAT),
        (tarred(), Code.PICKLE_FILE),
        *[(pickle.dumps({"a": [1.0]}, protocol), Code.PICKLE_FILE) for protocol in (2, 3, 4, 5)],
        (gzip.compress(b"content"), Code.FOREIGN_FORMAT),
        (b"\x93NUMPY\x01\x00v\x00", Code.FOREIGN_FORMAT),
        (b"\xef\xbb\xbf<html>", Code.HTML_PAGE),
        (b'{\n  "weight_map": {}', Code.FOREIGN_FORMAT),
    ],
    ids=[
        "torch",
        "npz",
        "tar",
        "pickle2",
        "pickle3",
        "pickle4",
        "pickle5",
        "gzip",
        "npy",
        "bom",
        "json",
    ],
)
def test_other_format_is_recognised(content: bytes, code: Code) -> None:
    """Files written by the real writers are recognised from their first bytes."""
    found = foreign(content[:SNIFFED_BYTES])
    assert found is not None
    assert found.code is code


@pytest.mark.parametrize("length", [0x3C, 0x7B, 0x0280, 0x04_03_4B_50, 0x5F5E100])
def test_length_that_looks_like_magic_is_not_mistaken(length: int) -> None:
    """Header lengths whose bytes spell `<`, `{`, a pickle or a zip are still lengths."""
    assert foreign(length.to_bytes(8, "little") + b'{"') is None


@pytest.mark.parametrize("length", [0x3C, 0x7B, 0x0280])
def test_malformed_header_keeps_its_own_error(length: int) -> None:
    """A header that does not begin with a brace is not called a page or a pickle for that."""
    assert foreign(length.to_bytes(8, "little") + b"\xef\xbb\xbf{") is None


def test_lfs_pointer_without_a_size_is_still_one() -> None:
    """A cut pointer is recognised; the size is just not told."""
    found = foreign(b"version https://git-lfs.github.com/spec/v1\n")
    assert found is not None
    assert found.message == "is a Git LFS pointer, not the weights"
