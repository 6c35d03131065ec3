"""What a rerun of a recipe skips, what it does again, and what it leaves alone."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import adaptool
from adaptool.errors import AdaptoolError
from adaptool.model.run_results import RunResult
from command_line import ROOT, run_patched
from faulty_disk import Fault, FaultPlan, FaultyDisk, Killed

RECIPE = """\
schema: 1
steps:
  - name: slim
    resize: {adapter: fixtures/adapter, out: build/slim, rank: 2}
  - name: file
    convert: {adapter: build/slim, out: build/slim.safetensors, to: peft}
  - name: merged
    merge: {base: fixtures/base, adapter: build/slim.safetensors, out: build/merged}
  - verify: {base: fixtures/base, adapter: build/slim.safetensors, merged: build/merged}
"""
STEPS = ["slim", "file", "merged", "verify"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own with a copy of fixtures/ and the recipe."""
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _done(result: RunResult) -> list[str]:
    """The steps that ran; all others must have been skipped."""
    assert {step.status for step in result.steps} <= {"done", "skipped"}, result.failed
    return [step.name for step in result.steps if step.status == "done"]


def _edit_config(field: str, value: object, folder: str = "fixtures/adapter") -> None:
    file = Path(folder, "adapter_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))


def _flip(file: str) -> None:
    raw = bytearray(Path(file).read_bytes())
    raw[-1] ^= 1
    Path(file).write_bytes(raw)


CHANGES: dict[str, tuple[Callable[[], object], list[str]]] = {
    "nothing": (lambda: None, []),
    "touched": (lambda: Path("fixtures/adapter/adapter_config.json").touch(), []),
    "alpha": (lambda: _edit_config("lora_alpha", 5), STEPS),
    "a bit of the adapter": (lambda: _flip("fixtures/adapter/adapter_model.safetensors"), STEPS),
    "a bit of the base": (
        lambda: _flip("fixtures/base/model-00001-of-00002.safetensors"),
        ["merged", "verify"],
    ),
    "a directory deleted": (lambda: shutil.rmtree("build/slim"), ["slim"]),
    "a file deleted": (lambda: Path("build/slim.safetensors").unlink(), ["file"]),
    "a bit of an output": (lambda: _flip("build/slim/adapter_model.safetensors"), ["slim"]),
    "everything deleted": (lambda: shutil.rmtree("build"), ["slim", "file", "merged"]),
    "another option": (
        lambda: Path("r.yaml").write_text(RECIPE.replace("rank: 2", "rank: 3")),
        STEPS,
    ),
    "another name": (lambda: Path("r.yaml").write_text(RECIPE.replace("e: slim", "e: s")), []),
    "the device": (
        lambda: Path("r.yaml").write_text(RECIPE.replace("rank: 2", "rank: 2, threads: 1")),
        [],
    ),
    "a new step": (
        lambda: Path("r.yaml").write_text(RECIPE + "  - inspect: {path: build/merged}\n"),
        ["inspect"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_rerun_does_what_a_change_reaches(change: str) -> None:
    """Each step whose inputs, options or outputs are others, and no other one."""
    assert _done(adaptool.run("r.yaml")) == STEPS
    edit, expected = CHANGES[change]
    edit()
    assert _done(adaptool.run("r.yaml")) == expected
    assert _done(adaptool.run("r.yaml")) == []


def test_restored_output_is_what_it_was() -> None:
    """A step that is done again gives the same bytes, so later ones are skipped."""
    adaptool.run("r.yaml")
    before = Path("build/slim/adapter_model.safetensors").read_bytes()
    _flip("build/slim/adapter_model.safetensors")
    adaptool.run("r.yaml")
    assert Path("build/slim/adapter_model.safetensors").read_bytes() == before


def test_one_of_several_outputs_that_is_lost_is_made_again() -> None:
    """The others of the same step are its own, and are replaced."""
    text = RECIPE.replace("rank: 2", "rank: 2, bom: build/bom.json, provenance: build/made.json")
    Path("r.yaml").write_text(text)
    assert _done(adaptool.run("r.yaml")) == STEPS
    for lost in ("build/bom.json", "build/made.json", "build/slim/adapter_config.json"):
        before = Path(lost).read_bytes()
        Path(lost).unlink()
        assert _done(adaptool.run("r.yaml")) == ["slim"]
        assert Path(lost).read_bytes() == before


def test_file_that_somebody_edited_is_not_overwritten() -> None:
    """Exit 5: the state does not account for it. --overwrite replaces it."""
    adaptool.run("r.yaml")
    Path("build/slim.safetensors").write_bytes(b"mine")
    failed = adaptool.run("r.yaml").failed
    assert failed is not None
    assert failed.error is not None
    assert (failed.name, failed.error.code, failed.error.exit_code) == ("file", "output-exists", 5)
    assert "changed since an earlier run" in failed.error.message
    assert Path("build/slim.safetensors").read_bytes() == b"mine"
    assert _done(adaptool.run("r.yaml", overwrite=True)) == ["file"]


def test_file_that_somebody_makes_after_a_step_failed_is_not_overwritten() -> None:
    """A step that failed has written nothing: it has no claim on the place."""
    step = "{convert: {adapter: given, out: x.safetensors, to: peft}}"
    Path("r.yaml").write_text(f"schema: 1\nsteps: [{step}]\n")
    Path("given").mkdir()
    assert adaptool.run("r.yaml").exit_code == 2
    shutil.copytree("fixtures/adapter", "given", dirs_exist_ok=True)
    Path("x.safetensors").write_bytes(b"mine")
    assert adaptool.run("r.yaml").exit_code == 5
    assert Path("x.safetensors").read_bytes() == b"mine"


def test_file_that_is_added_to_an_output_is_not_lost() -> None:
    """The receipt does not account for it: exit 5, and it is still there."""
    adaptool.run("r.yaml")
    Path("build/slim/notes.txt").write_text("mine")
    failed = adaptool.run("r.yaml").failed
    assert failed is not None
    assert failed.error is not None
    assert (failed.name, failed.error.exit_code) == ("slim", 5)
    assert Path("build/slim/notes.txt").read_text() == "mine"


def test_failing_step_ends_the_run_with_its_own_exit_code() -> None:
    """What was done before is kept, what comes after does not run; mended, it goes on there."""
    Path("fixtures/base/config.json").rename("config.json")
    shards = sorted(Path("fixtures/base").glob("*.safetensors"))
    shards[0].rename("shard")
    result = adaptool.run("r.yaml")
    assert [step.status for step in result.steps] == ["done", "done", "failed", "not-run"]
    assert result.exit_code == 3
    body = result.as_json()
    assert body["error"] == body["steps"][2]["error"] == body["errors"][0]
    Path("shard").rename(shards[0])
    Path("config.json").rename("fixtures/base/config.json")
    assert _done(adaptool.run("r.yaml")) == ["merged", "verify"]


def test_failing_check_is_exit_1_and_asked_again() -> None:
    """validate and verify say no: exit 1 with their answer, every time until it is mended."""
    adaptool.run("r.yaml")
    file = min(Path("build/merged").glob("*.safetensors"))
    raw = file.read_bytes()
    Path("r.yaml").write_text(
        RECIPE.partition("  - name: merged")[0] + RECIPE[RECIPE.index("  - verify") :]
    )
    file.write_bytes(raw[:-2] + b"\x80\x41")
    for _ in range(2):
        result = adaptool.run("r.yaml")
        assert (result.exit_code, result.ok) == (1, False)
        assert result.failed is not None
        assert result.failed.result is not None
        assert result.failed.result["tensors"]["different"] == 1
        assert "error" not in result.as_json()
    file.write_bytes(raw)
    assert _done(adaptool.run("r.yaml")) == []


@pytest.mark.parametrize(
    "step", ["merged", *(pytest.param(step, marks=pytest.mark.slow) for step in ("file", "verify"))]
)
def test_interrupted_run_goes_on_with_the_step_it_was_at(step: str) -> None:
    """Ctrl-C within a step: exit 130, what was done is remembered."""
    verb = {"file": "convert", "merged": "merge", "verify": "verify"}[step]
    patch = (
        "import os, signal\n"
        "from adaptool.recipes.words import Verb\n"
        "call = Verb.call\n"
        "def interrupted(self, values):\n"
        f"    if self.name == {verb!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return call(self, values)\n"
        "Verb.call = interrupted\n"
    )
    assert run_patched(patch, "run", "r.yaml").code == 128 + signal.SIGINT
    assert _done(adaptool.run("r.yaml")) == STEPS[STEPS.index(step) :]


def test_state_has_no_clock_and_no_path_of_this_machine(here: Path) -> None:
    """Two runs in two places remember the same, but for how long they took."""
    adaptool.run("r.yaml")
    text = Path("r.state.json").read_text()
    assert str(here) not in text
    steps = json.loads(text)["steps"]
    assert [step["step"] for step in steps] == STEPS
    assert all(step["inputs"] for step in steps)


def test_broken_state_is_said_and_nothing_is_run() -> None:
    """Exit 3 names the file; without it the outputs are in the way."""
    adaptool.run("r.yaml")
    Path("r.state.json").write_text("{")
    with pytest.raises(AdaptoolError) as caught:
        adaptool.run("r.yaml")
    assert (caught.value.exit_code, caught.value.file) == (3, "r.state.json")
    Path("r.state.json").unlink()
    failed = adaptool.run("r.yaml").failed
    assert failed is not None
    assert failed.error is not None
    assert failed.error.code == "output-exists"


FIRST = RECIPE.partition("  - name: merged")[0]


@pytest.mark.parametrize(
    "fault", [Fault.KILL, pytest.param(Fault.IO_ERROR, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "rank", [pytest.param(2, id="fresh", marks=pytest.mark.slow), pytest.param(3, id="changed")]
)
def test_run_that_is_struck_anywhere_is_completed_by_the_next(fault: Fault, rank: int) -> None:
    """Operations on the disk in their turn, before and after outputs and state are in place."""
    adaptool.run(_recipe(Path(), 2))
    disk = FaultyDisk()
    with contextlib.chdir(_recipe(Path("expected"), rank).parent):
        adaptool.run("r.yaml", disk=disk)
    disk.bury()
    struck = 0
    for number in range(0, len(disk.operations), 7):
        with contextlib.chdir(_recipe(Path(f"trial-{number}"), rank).parent):
            if rank != 2:
                shutil.copytree("../build", "build")
                shutil.copy("../r.state.json", "r.state.json")
            struck += _strike(FaultPlan(number, fault))
            assert adaptool.run("r.yaml").ok, disk.operations[number]
            assert _files(Path("build")) == _files(Path("../expected/build"))
    assert struck > 8


def _recipe(folder: Path, rank: int) -> Path:
    """A recipe of two steps in `folder`, with its own fixtures."""
    file = folder / "r.yaml"
    if folder != Path():
        shutil.copytree("fixtures", folder / "fixtures")
    file.write_text(FIRST.replace("rank: 2", f"rank: {rank}"))
    return file


def _strike(plan: FaultPlan) -> bool:
    disk = FaultyDisk(plan)
    try:
        return not adaptool.run("r.yaml", disk=disk).ok
    except (AdaptoolError, Killed):
        return True
    finally:
        disk.bury()


def _files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_same_output_in_another_directory_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state knows names; what lies there must be what it remembers, or have a receipt."""
    adaptool.run("r.yaml")
    other = tmp_path / "other"
    (other / "build").mkdir(parents=True)
    shutil.copytree("fixtures", other / "fixtures")
    monkeypatch.chdir(other)
    Path("build/slim.safetensors").write_bytes(b"mine")
    result = adaptool.run("../r.yaml")
    assert [step.status for step in result.steps] == ["done", "failed", "not-run", "not-run"]
    assert Path("build/slim.safetensors").read_bytes() == b"mine"
