"""Text is added to a file that others write to, and to nothing that it would break."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptool.errors import OutputError
from adaptool.store.appending import append_text, check_appendable
from adaptool.store.disk import Disk
from faulty_disk import Fault, FaultPlan, FaultyDisk


def test_text_is_added_after_what_stands_there(tmp_path: Path) -> None:
    """A new file is made; a second piece follows the first."""
    file = tmp_path / "summary"
    append_text(file, "one\n", Disk())
    append_text(file, "zwei: ß\n", Disk())
    assert file.read_text(encoding="utf-8") == "one\nzwei: ß\n"


@pytest.mark.parametrize("name", ["adapter_config.json", "model.safetensors", "recipe.yaml"])
def test_artifact_is_not_added_to(tmp_path: Path, name: str) -> None:
    """Exit 5: Markdown at the end of a config would break it."""
    file = tmp_path / name
    file.write_bytes(b"{}")
    with pytest.raises(OutputError, match="is not Markdown") as caught:
        append_text(file, "x", Disk())
    assert (caught.value.code, file.read_bytes()) == ("output-exists", b"{}")


def test_binary_file_is_not_added_to(tmp_path: Path) -> None:
    """Whatever its name says: text has no zero bytes."""
    file = tmp_path / "weights"
    file.write_bytes(b"\x08" + bytes(7) + b"{}      ")
    with pytest.raises(OutputError, match="is not Markdown"):
        check_appendable(file, Disk())


def test_directory_link_and_missing_folder_are_refused(tmp_path: Path) -> None:
    """Each with its own code, and nothing is made."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    exists, missing = "output-exists", "output-parent-missing"
    codes = {}
    for name in (".", "link", "no/summary"):
        with pytest.raises(OutputError) as caught:
            check_appendable(tmp_path / name, Disk())
        codes[name] = caught.value.code
    assert codes == {".": exists, "link": exists, "no/summary": missing}
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


class _FillsUp(Disk):
    """A disk that takes half of a text and then no more."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = 1

    def perform(self, operation: str, call: Callable[..., Any], *arguments: Any) -> Any:
        if operation != "pwrite":
            return call(*arguments)
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= 1
        descriptor, chunk, offset = arguments
        return call(descriptor, chunk[: chunk.nbytes // 2], offset)


def test_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Half a section is worse than none: it is cut off again."""
    file = tmp_path / "summary.md"
    file.write_text("# Job\n")
    with pytest.raises(OutputError) as caught:
        append_text(file, "x" * 100, _FillsUp())
    assert (caught.value.code, file.read_text()) == ("disk-full", "# Job\n")
    append_text(file, "x" * 100, FaultyDisk(FaultPlan(1, Fault.SHORT)))
    assert file.read_text() == "# Job\n" + "x" * 100
