"""A hollow file stands for one that lies elsewhere; nobody takes its zeros for its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptool.errors import InputError
from adaptool.store.adapter_files import open_adapter
from adaptool.store.checkpoint import open_checkpoint
from adaptool.store.disk import Disk
from adaptool.store.documents import read_json_object
from adaptool.store.header import read_header
from adaptool.store.local import LocalSource
from adaptool.store.passing import put_document, put_hollow

SIZE = 1 << 30


def test_hollow_file_has_its_size_and_takes_no_room(tmp_path: Path) -> None:
    """A gigabyte that is not there."""
    put_hollow(Disk(), tmp_path / "model.safetensors", SIZE)
    status = (tmp_path / "model.safetensors").stat()
    assert (status.st_size, status.st_blocks) == (SIZE, 0)


@pytest.mark.parametrize("size", [1, 8, 100, SIZE])
def test_hollow_weights_are_refused(tmp_path: Path, size: int) -> None:
    """As a header, as a model and as an adapter: a header of length 0 is none."""
    path = tmp_path / "model.safetensors"
    put_hollow(Disk(), path, size)
    with LocalSource(path) as source, pytest.raises(InputError):
        read_header(source)
    for opened in (open_checkpoint, open_adapter):
        with pytest.raises(InputError):
            opened(path)
    with pytest.raises(InputError):
        open_checkpoint(tmp_path)


def test_hollow_document_is_refused(tmp_path: Path) -> None:
    """Zeros are no JSON; what is put there for real is."""
    put_hollow(Disk(), tmp_path / "hollow.json", 20)
    put_document(Disk(), tmp_path / "real.json", b'{"a": 1}')
    with pytest.raises(InputError):
        read_json_object(tmp_path / "hollow.json", limit_bytes=1000, what="config")
    found = read_json_object(tmp_path / "real.json", limit_bytes=1000, what="config")
    assert found == {"a": 1}
