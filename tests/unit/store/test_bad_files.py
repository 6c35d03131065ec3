"""Every row of the table of bad inputs, at library level."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from adaptool.errors import AdaptoolError, IntegrityError, OutputError, UsageError
from adaptool.findings import Code, Finding
from adaptool.store.checkpoint import open_checkpoint
from adaptool.store.header import read_header
from adaptool.store.local import LocalSource
from bad_builders import BadFile, checkpoint, good_file
from bad_files import CHECKPOINTS, CONTAINER, KINDS

FILES = (*CONTAINER, *KINDS)


def rows(table: Iterable[BadFile], *, refused: bool) -> list[Any]:
    """The refused or the accepted rows of a table, as parameters with their row's id."""
    return [pytest.param(bad, id=bad.row) for bad in table if (bad.exit != 0) is refused]


def findings_of_file(path: Path) -> tuple[Finding, ...]:
    """Open a weight file, read its header and close it."""
    with LocalSource(path) as source:
        return read_header(source).findings


def findings_of_checkpoint(path: Path) -> tuple[Finding, ...]:
    """Open a checkpoint and close it."""
    with open_checkpoint(path) as opened:
        return opened.findings


def assert_row(bad: BadFile, seen: AdaptoolError | Finding, path: Path) -> None:
    """The error or finding says what the row asks for."""
    if bad.code is not None:
        assert seen.code is bad.code
    assert seen.file is not None
    assert bad.file in seen.file
    assert seen.file.isprintable()
    assert bad.says in seen.message
    assert seen.message.isprintable()
    assert str(path) not in seen.message
    if bad.tensor is not None:
        assert seen.tensor == bad.tensor
    if bad.field is not None:
        assert seen.field == bad.field


def assert_refused(bad: BadFile, opened: Callable[[Path], tuple[Finding, ...]], path: Path) -> None:
    """Opening raises the row's error."""
    with pytest.raises(AdaptoolError) as caught:
        opened(path)
    assert caught.value.exit_code == bad.exit
    assert_row(bad, caught.value, path)


def assert_accepted(
    bad: BadFile, opened: Callable[[Path], tuple[Finding, ...]], path: Path
) -> None:
    """Opening gives the row's finding and no other."""
    findings = opened(path)
    assert [finding.code for finding in findings] == ([] if bad.code is None else [bad.code])
    for finding in findings:
        assert_row(bad, finding, path)


@pytest.mark.parametrize("bad", rows(FILES, refused=True))
def test_bad_file_is_refused_by_name(bad: BadFile, tmp_path: Path) -> None:
    """A bad weight file is refused with the row's exit code, naming file, tensor and field."""
    if bad.unprivileged and os.geteuid() == 0:
        pytest.skip("root may read everything")
    assert_refused(bad, findings_of_file, bad.build(tmp_path))


@pytest.mark.parametrize("bad", rows(FILES, refused=False))
def test_odd_file_is_accepted(bad: BadFile, tmp_path: Path) -> None:
    """An odd but sound weight file is accepted, with the row's finding and no other."""
    assert_accepted(bad, findings_of_file, bad.build(tmp_path))


@pytest.mark.parametrize("bad", rows(CHECKPOINTS, refused=True))
def test_bad_checkpoint_is_refused_by_name(bad: BadFile, tmp_path: Path) -> None:
    """A bad checkpoint is refused with the row's exit code, naming file, tensor and field."""
    assert_refused(bad, findings_of_checkpoint, bad.build(tmp_path))


@pytest.mark.parametrize("bad", rows(CHECKPOINTS, refused=False))
def test_odd_checkpoint_is_accepted(bad: BadFile, tmp_path: Path) -> None:
    """An odd but sound checkpoint is accepted, with the row's finding and no other."""
    assert_accepted(bad, findings_of_checkpoint, bad.build(tmp_path))


@pytest.mark.parametrize("bad", rows([bad for bad in CONTAINER if bad.exit == 3], refused=True))
def test_bad_shard_makes_checkpoint_fail_the_same_way(bad: BadFile, tmp_path: Path) -> None:
    """A checkpoint of one bad file is refused as the file is."""
    path = bad.build(tmp_path)
    with pytest.raises(AdaptoolError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.exit_code == bad.exit
    assert_row(bad, caught.value, path)


def test_every_row_is_there() -> None:
    """The table has no hole: A1 to A43, B1 to B10 but for the three that need an open file."""
    there = {bad.row.split("-")[0] for bad in (*FILES, *CHECKPOINTS)}
    wanted = {f"A{i}" for i in range(1, 44)} | {f"E{i}" for i in range(1, 13)}
    wanted |= {f"B{i}" for i in range(1, 11)} - {"B7", "B8", "B9"}
    assert there == wanted


def test_b1_names_the_nearest_file(tmp_path: Path) -> None:
    """B1: a missing file's error suggests the file that is there."""
    good_file(tmp_path)
    with pytest.raises(UsageError) as caught:
        LocalSource(tmp_path / "modle.safetensors")
    assert caught.value.hint == "did you mean model.safetensors?"


def test_b2_directory_lists_what_was_looked_for(tmp_path: Path) -> None:
    """B2: a directory without a model says which names were looked for."""
    with pytest.raises(UsageError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code is Code.CHECKPOINT_MISSING
    assert "model.safetensors.index.json" in caught.value.message
    assert "model.safetensors," in caught.value.message


def test_b4_no_permission_is_a_local_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B4: a file that may not be opened gives exit 5, whoever runs the test."""
    path = good_file(tmp_path)

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("adaptool.store.local.os.open", denied)
    with pytest.raises(OutputError) as caught:
        LocalSource(path)
    assert caught.value.code is Code.NOT_READABLE
    assert caught.value.file == str(path)


def test_b7_file_that_shrinks_is_an_integrity_error(tmp_path: Path) -> None:
    """B7: a file truncated after it was opened gives exit 9 on the next read, not SIGBUS."""
    path = good_file(tmp_path)
    with LocalSource(path) as source:
        tensor = read_header(source).tensors["x"]
        os.truncate(path, source.size - 4)
        with pytest.raises(IntegrityError) as caught:
            source.read(tensor.offset, tensor.length)
    assert caught.value.exit_code == 9
    assert caught.value.code is Code.FILE_CHANGED
    assert "4 bytes are missing" in caught.value.message


def test_b8_replaced_checkpoint_is_an_integrity_error(tmp_path: Path) -> None:
    """B8: a shard replaced while the checkpoint is open gives exit 9."""
    with open_checkpoint(checkpoint(tmp_path)) as opened:
        opened.check_unchanged()
        new = tmp_path / "new"
        new.write_bytes((tmp_path / opened.shards[0].file).read_bytes())
        new.replace(tmp_path / opened.shards[0].file)
        with pytest.raises(IntegrityError) as caught:
            opened.check_unchanged()
    assert caught.value.code is Code.FILE_CHANGED
    assert caught.value.file == opened.shards[0].source.name


def test_b9_failing_device_names_file_and_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B9: EIO on a read gives exit 5 with the file and the offset."""

    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    path = good_file(tmp_path)
    with LocalSource(path) as source:
        monkeypatch.setattr("adaptool.store.local.os.preadv", failing)
        with pytest.raises(OutputError) as caught:
            source.read(4, 2)
    assert caught.value.code is Code.READ_FAILED
    assert caught.value.file == str(path)
    assert "offset 4" in caught.value.message
