"""Every row of the table of bad inputs, through the real command line.

Rows A, B and E are bad weight files and checkpoints, C and D bad adapters, F bad outputs. What is
refused ends with the row's exit code and lines that name the place, never with a traceback, and
leaves nothing at OUT; `validate` exits 1 with the same code among its findings.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptool.findings import Code
from adaptool.store.disk import Disk, Flock
from adaptool.store.lock import OutputLock
from adaptool.store.placement import place
from bad_adapters import CONFIGS, TENSORS, BadAdapter, good_pair
from bad_builders import BadFile
from bad_files import CHECKPOINTS, CONTAINER, KINDS
from command_line import Run, run
from faulty_disk import FailingDisk, Fault, FaultPlan, FaultyDisk
from in_process import ask, done
from small_pairs import Pair, write

Bad = BadFile | BadAdapter
ADAPTERS = (*CONFIGS, *TENSORS)
SLOW = {"A36", "A37", "E10"}
# One of each kind is started as a user starts it.
FRESH = {
    *("A1-short", "A2", "A4", "A15", "A29", "A33", "A38-named-in-an-error"),
    *("B1", "B3-fifo", "B10-bad", "E1", "E4-parent", "E8"),
    *("C2-double", "C6", "C11", "C27", "D1-a", "D9", "D10", "D17"),
}


def rows(table: Iterable[Any], *, refused: bool, fresh: bool = False) -> list[Any]:
    """The refused or the accepted rows, as parameters with their row's id."""
    return [
        pytest.param(bad, id=bad.row, marks=pytest.mark.slow if bad.row in SLOW else ())
        for bad in table
        if (bad.exit != 0) is refused and (bad.row in FRESH or not fresh)
    ]


def built(bad: BadFile, folder: Path) -> Path:
    """The row's file or checkpoint."""
    if bad.unprivileged and os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder.mkdir()
    return bad.build(folder)


def spoiled(bad: BadAdapter, folder: Path) -> tuple[Path, Path]:
    """The row's base and adapter."""
    pair = good_pair()
    bad.spoil(pair)
    return pair.write(folder / "in")


def flags(bad: BadAdapter) -> list[str]:
    """merge's options as flags."""
    given: list[str] = []
    for name, value in bad.options.items():
        given.append(f"--{name.replace('_', '-')}")
        given += [] if value is True else [str(value)]
    return given


def assert_refused(answer: Run, bad: Bad) -> None:
    """The exit code; on stderr an `error:` line for each error, the first naming the place."""
    assert answer.code == bad.exit, answer.err
    assert answer.out == ""
    lines = answer.err.splitlines()
    assert lines[0].startswith("error: ")
    assert all(line.startswith(("error: ", "hint: ")) for line in lines), answer.err
    assert all(line.isprintable() for line in lines)
    named = [line for line in lines if line.startswith("error: ") and bad.file in line]
    for part in (bad.tensor, bad.field, bad.says):
        named = [line for line in named if (part or "") in line]
    assert named, answer.err


def assert_told_as_json(answer: Run, bad: Bad) -> None:
    """The same as an object: its slug, its exit code and where."""
    assert (answer.code, answer.err) == (bad.exit, "")
    error = answer.json["error"]
    assert error["exit"] == bad.exit
    assert bad.code is None or error["code"] == bad.code
    assert bad.file in (error["file"] or "")
    assert len(answer.json["errors"]) <= 20


def assert_found(answer: Run, bad: Bad) -> None:
    """validate: exit 1, and the row's code among the errors; not there at all stays exit 2."""
    if bad.exit == 2:
        assert answer.code == 2
        return
    assert answer.code == 1, answer.out
    errors = [each for each in answer.json["findings"] if each["severity"] == "error"]
    matching = [each for each in errors if each["code"] == bad.code]
    assert matching, errors
    assert any(bad.tensor in (None, each["tensor"]) for each in matching), matching


@pytest.mark.parametrize("bad", rows((*CONTAINER, *KINDS, *CHECKPOINTS), refused=True))
def test_bad_base_is_refused(bad: BadFile, tmp_path: Path) -> None:
    """Rows A, B and E as BASE; said in lines and as JSON, and nothing is written."""
    path = built(bad, tmp_path / "bad")
    _, adapter = good_pair().write(tmp_path / "good")
    command = ("merge", path, adapter, tmp_path / "out")
    assert_refused(ask(*command), bad)
    assert_told_as_json(ask(*command, "--json"), bad)
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad", "good"}


@pytest.mark.parametrize("bad", rows((*CONTAINER, *KINDS), refused=True))
def test_bad_adapter_file_is_refused(bad: BadFile, tmp_path: Path) -> None:
    """Rows A and B as ADAPTER."""
    path = built(bad, tmp_path / "bad")
    base, _ = good_pair().write(tmp_path / "good")
    assert_refused(ask("merge", base, path, tmp_path / "out"), bad)
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad", "good"}


@pytest.mark.parametrize("bad", rows((*CONTAINER, *KINDS, *CHECKPOINTS), refused=True))
def test_validate_finds_what_is_wrong_with_a_file(bad: BadFile, tmp_path: Path) -> None:
    """Rows A, B and E: a check that says no is exit 1."""
    assert_found(ask("validate", built(bad, tmp_path / "bad"), "--json"), bad)


@pytest.mark.parametrize("bad", rows((*CONTAINER, *KINDS, *CHECKPOINTS), refused=False))
def test_odd_base_is_accepted(bad: BadFile, tmp_path: Path) -> None:
    """Rows that are odd and sound: at weight 0 the same tensors, with the row's finding."""
    path = built(bad, tmp_path / "bad")
    _, adapter = good_pair().write(tmp_path / "good")
    answer = ask("merge", path, adapter, tmp_path / "out", "--weight", "0", "--json")
    assert answer.code == 0, answer.out
    codes = [] if bad.code is None else [bad.code]
    assert [each["code"] for each in answer.json["findings"]] == codes
    checked = ask("validate", path, "--json")
    assert (checked.code, checked.json["ok"]) == (0, True)
    assert [each["code"] for each in checked.json["findings"]] == codes


@pytest.mark.parametrize("bad", rows(ADAPTERS, refused=True))
def test_bad_adapter_is_refused(bad: BadAdapter, tmp_path: Path) -> None:
    """Rows C and D; what only the values show leaves nothing at OUT either."""
    base, adapter = spoiled(bad, tmp_path)
    command = ("merge", base, adapter, tmp_path / "out", *flags(bad))
    assert_refused(ask(*command), bad)
    assert_told_as_json(ask(*command, "--json"), bad)
    assert {entry.name for entry in tmp_path.iterdir()} == {"in"}


@pytest.mark.parametrize("bad", rows(ADAPTERS, refused=True))
def test_validate_finds_what_is_wrong_with_an_adapter(bad: BadAdapter, tmp_path: Path) -> None:
    """Rows C and D, with the base at hand and the values read where they matter."""
    if bad.only_merge:
        pytest.skip("only a merge, or an option of it, shows this")
    base, adapter = spoiled(bad, tmp_path)
    given = ["--values"] if bad.values else []
    assert_found(ask("validate", adapter, "--base", base, "--json", *given), bad)


@pytest.mark.parametrize("bad", rows(ADAPTERS, refused=False))
def test_odd_adapter_is_accepted(bad: BadAdapter, tmp_path: Path) -> None:
    """Rows that are odd and sound merge, with the row's finding and a whole output."""
    base, adapter = spoiled(bad, tmp_path)
    answer = ask("merge", base, adapter, tmp_path / "out", "--json", *flags(bad))
    assert answer.code == 0, answer.out
    codes = {each["code"] for each in answer.json["findings"]}
    assert bad.code in codes if bad.code is not None else not codes
    assert ask("verify", base, adapter, tmp_path / "out", "--exact").code == 0


@pytest.mark.parametrize(
    "bad", rows((*CONTAINER, *KINDS, *CHECKPOINTS, *ADAPTERS), refused=True, fresh=True)
)
def test_a_fresh_process_says_the_same(bad: Bad, tmp_path: Path) -> None:
    """A dozen rows and more as a user meets them, with the interpreter's own stderr."""
    if isinstance(bad, BadAdapter):
        base, adapter = spoiled(bad, tmp_path)
    else:
        base = built(bad, tmp_path / "in")
        _, adapter = good_pair().write(tmp_path / "in" / "good")
    given = flags(bad) if isinstance(bad, BadAdapter) else []
    assert_refused(run("merge", base, adapter, tmp_path / "out", *given), bad)
    assert {entry.name for entry in tmp_path.iterdir()} == {"in"}


@dataclass
class Scene:
    """Inputs, and a directory in which OUT is to appear; what a row arranges around them."""

    pair: Pair
    home: Path
    monkeypatch: pytest.MonkeyPatch
    out: Path

    def on(self, disk: Disk) -> None:
        """Let the merge write to this disk."""
        self.monkeypatch.setattr("adaptool.api.merging.Disk", lambda: disk)

    def merge(self, *given: str | Path) -> Run:
        """The merge of the row."""
        return ask("merge", self.pair.base, self.pair.adapter, self.out, *given)

    def interrupted(self, *given: str) -> Path:
        """A run that is stopped in the middle; its staging directory."""
        disk = FaultyDisk(FaultPlan(60, Fault.CTRL_C))
        self.on(disk)
        assert self.merge(*given).code == 130
        disk.bury()
        self.monkeypatch.undo()
        (work,) = (self.home / ".out.adaptool-partial").iterdir()
        return work


@dataclass(frozen=True)
class BadOutput:
    """One row F: what is arranged, and what comes of a merge; a finding's code where exit is 0."""

    row: str
    arrange: Callable[[Scene], object]
    exit: int
    code: Code | None
    file: str = "out"
    says: str = ""
    tensor: str | None = None
    field: str | None = None
    given: tuple[str, ...] = ()


class SmallDisk(Disk):
    """A disk that is nearly full."""

    def free_space(self, path: Path) -> int:  # noqa: ARG002 - the disk's signature
        """A thousand bytes."""
        return 1000


def _exists(scene: Scene) -> None:
    scene.out.mkdir()
    (scene.out / "mine").touch()


def _is(name: str) -> Callable[[Scene], None]:
    def arrange(scene: Scene) -> None:
        scene.out = scene.pair.base.parent / name

    return arrange


def _link_to_base(scene: Scene) -> None:
    scene.out.symlink_to(scene.pair.base)


def _around(scene: Scene) -> None:
    scene.out = scene.pair.base.parent


def _no_parent(scene: Scene) -> None:
    scene.out = scene.home / "no" / "such" / "out"


def _fails(number: int, *operations: str) -> Callable[[Scene], None]:
    return lambda scene: scene.on(FailingDisk(number, *operations))


def _strikes(fault: Fault, at: int) -> Callable[[Scene], None]:
    return lambda scene: scene.on(FaultyDisk(FaultPlan(at, fault)))


def _held(scene: Scene) -> None:
    OutputLock.acquire(place(scene.out, Disk()).lock, Disk())


def _another_plans(scene: Scene) -> None:
    scene.interrupted("--weight", "0.5")


def _same_plans(scene: Scene) -> None:
    scene.interrupted()


def _torn_journal(scene: Scene) -> None:
    journal = scene.interrupted() / "journal.json"
    journal.write_bytes(journal.read_bytes()[:20])


def _zeros(scene: Scene) -> None:
    for file in (scene.interrupted() / "out").iterdir():
        file.write_bytes(bytes(file.stat().st_size))


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
OUTPUTS = (
    BadOutput("F1", _exists, 5, Code.OUTPUT_EXISTS, says="not empty"),
    BadOutput("F1-forced", _exists, 5, Code.OUTPUT_EXISTS, says="'mine'", given=("--overwrite",)),
    BadOutput("F2-base", _is("base"), 2, Code.OUTPUT_IS_INPUT, file="base"),
    BadOutput("F2-adapter", _is("adapter"), 2, Code.OUTPUT_IS_INPUT, file="adapter"),
    BadOutput("F2-link", _link_to_base, 2, Code.OUTPUT_IS_INPUT),
    BadOutput("F3-inside", _is("base/new"), 2, Code.OUTPUT_OVERLAPS_INPUT, file="new"),
    BadOutput("F3-around", _around, 2, Code.OUTPUT_OVERLAPS_INPUT, file="inputs"),
    BadOutput("F4", lambda scene: scene.on(SmallDisk()), 5, Code.DISK_FULL, says="1.0 kB are free"),
    BadOutput("F5", _strikes(Fault.STAYS_FULL, 60), 5, Code.DISK_FULL),
    BadOutput("F5-quota", _fails(errno.EDQUOT, "preallocate"), 5, Code.DISK_FULL),
    BadOutput("F6-parent", _no_parent, 5, Code.OUTPUT_PARENT_MISSING),
    BadOutput("F6-read-only", _fails(errno.EROFS, "open", "mkdir"), 5, Code.OUTPUT_NOT_WRITABLE),
    BadOutput("F6-denied", _fails(errno.EACCES, "open", "mkdir"), 5, Code.OUTPUT_NOT_WRITABLE),
    BadOutput("F7-write", _fails(errno.EIO, "copy_range"), 5, Code.WRITE_FAILED),
    BadOutput("F7-fsync", _fails(errno.EIO, "fsync"), 5, Code.WRITE_FAILED),
    BadOutput("F8", _fails(errno.EFBIG, "preallocate"), 5, Code.FILE_TOO_LARGE),
    BadOutput("F9-short", _strikes(Fault.SHORT, 60), 0, None),
    BadOutput("F9-again", _strikes(Fault.RETRY, 60), 0, None),
    BadOutput("F10", _fails(errno.EIO, "close"), 5, Code.WRITE_FAILED),
    BadOutput("F11", _held, 8, Code.OUTPUT_BUSY, says=str(os.getpid())),
    BadOutput(
        "F12",
        lambda scene: scene.on(FaultyDisk(lacking={"flock": Flock.UNSUPPORTED})),
        0,
        None,
    ),
    BadOutput("F13", _another_plans, 0, Code.STAGING_DIFFERS),
    BadOutput("F14", _same_plans, 0, None),
    BadOutput("F15", _torn_journal, 0, Code.STAGING_DIFFERS),
    BadOutput("F16", _zeros, 0, None),
    BadOutput(
        *("F23", lambda _: None, 7, Code.DEVICE_MISSING),
        file="",
        field="--device",
        given=("--device", "cuda"),
    ),
)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    home = tmp_path / "home"
    home.mkdir()
    return Scene(write("lora", tmp_path / "inputs"), home, monkeypatch, home / "out")


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(bad, id=bad.row, marks=NO_CUDA if bad.row == "F23" else ())
        for bad in OUTPUTS
        if bad.exit
    ],
)
def test_bad_output_is_refused(bad: BadOutput, scene: Scene, tmp_path: Path) -> None:
    """Rows F; what stands at OUT stays, nothing of the merge is there."""
    bad.arrange(scene)
    before = everything(tmp_path / "inputs"), everything(scene.out)
    answer = scene.merge(*bad.given)
    assert_refused(answer, bad)
    told = scene.merge(*bad.given, "--json").json["error"]
    assert (told["code"], told["exit"]) == (bad.code, bad.exit)
    assert told["hint"]
    assert (everything(tmp_path / "inputs"), everything(scene.out)) == before


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.row) for bad in OUTPUTS if not bad.exit])
def test_odd_output_is_handled(bad: BadOutput, scene: Scene, tmp_path: Path) -> None:
    """Rows F that a merge copes with: the same bytes as anywhere, and nothing beside OUT."""
    bad.arrange(scene)
    answer = scene.merge("--json")
    assert answer.code == 0, answer.out
    codes = [each["code"] for each in answer.json["findings"]]
    assert codes == ([] if bad.code is None else [bad.code])
    scene.monkeypatch.undo()
    done("merge", scene.pair.base, scene.pair.adapter, tmp_path / "expected")
    assert everything(scene.out) == everything(tmp_path / "expected")
    assert [path.name for path in scene.home.iterdir()] == ["out"]


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".adaptool-partial" not in str(path)
    }


# Where the others are: F17 and F18 in tests/faults/test_merge_signals.py, F19 in test_errors.py,
# F20 and F21 in tests/gpu, F24 in tests/laws/test_bytes.py. F22 would need another flag.
ELSEWHERE = {"F17", "F18", "F19", "F20", "F21", "F22", "F24"}


def test_every_row_is_there() -> None:
    """The table has no hole from A1 to F24, but for what needs an open file or another command."""
    every = (*CONTAINER, *KINDS, *CHECKPOINTS, *ADAPTERS, *OUTPUTS)
    there = {bad.row.partition("-")[0] for bad in every} | ELSEWHERE | {"B7", "B8", "B9"}
    sizes = {"A": 43, "B": 10, "C": 34, "D": 23, "E": 12, "F": 24}
    assert there == {f"{name}{n}" for name, size in sizes.items() for n in range(1, size + 1)}


def test_directories_with_names_that_are_no_text(tmp_path: Path) -> None:
    """B10 for whole artifacts: not UTF-8, a line end, an escape; they work, shown escaped."""
    pair = write("lora", tmp_path)
    base = pair.base.rename(tmp_path / os.fsdecode(b"ba\xff\nse"))
    adapter = pair.adapter.rename(tmp_path / os.fsdecode(b"ad\xff\x1b[31m"))
    out = tmp_path / os.fsdecode(b"o\xff\rut")
    merged = done("merge", base, adapter, out)
    assert r"o\udcff\rut (" in merged.out
    assert done("verify", base, adapter, out, "--exact").out == "ok: 21 tensors checked\n"
    assert r"ad\udcff\x1b[31m" in (out / "adaptool.json").read_text().replace("\\\\", "\\")
    refused = ask("merge", base, adapter, out)
    assert refused.code == 5
    assert r"o\udcff\rut" in refused.err
