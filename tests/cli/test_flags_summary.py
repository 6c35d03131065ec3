"""--summary FILE of every command: what was done, or the error, as Markdown after what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from command_line import ADAPTER, BASE, run_patched
from hub_stand_in import StandIn

Adaptool = Callable[..., Any]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A summary that an earlier step of the job has begun."""
    file = tmp_path / "summary.md"
    file.write_text("# Job\n\n")
    return file


def _heads(page: Path) -> list[str]:
    text = page.read_text()
    assert text.startswith("# Job\n\n### adaptool ")
    assert text.endswith("\n\n")
    return [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]


def test_merge_verify_unmerge_summary(adaptool: Adaptool, page: Path, tmp_path: Path) -> None:
    """Three sections in their order, with the numbers of the answers."""
    out, back = tmp_path / "out", tmp_path / "back"
    adaptool("merge", "--summary", page, BASE, ADAPTER, out)
    adaptool("verify", "--summary", page, BASE, ADAPTER, out)
    adaptool("unmerge", "--summary", page, out, ADAPTER, back)
    assert _heads(page) == [
        f"adaptool merge {BASE} {ADAPTER} {out}",
        f"adaptool verify {BASE} {ADAPTER} {out}",
        f"adaptool unmerge {out} {ADAPTER} {back}",
    ]
    assert "total 21, touched 14, copied 7" in page.read_text()


def test_resize_combine_convert_extract_summary(
    adaptool: Adaptool, page: Path, tmp_path: Path
) -> None:
    """What stands without a flag is the title; a file that is not there yet is made."""
    page.unlink()
    adaptool("resize", "--summary", page, ADAPTER, tmp_path / "small", "--rank", 2)
    adaptool("combine", "--summary", page, ADAPTER, ADAPTER, "-o", tmp_path / "both")
    adaptool("convert", "--summary", page, ADAPTER, tmp_path / "mlx", "--to", "mlx")
    adaptool("merge", BASE, ADAPTER, tmp_path / "tuned")
    adaptool("extract", "--summary", page, BASE, tmp_path / "tuned", tmp_path / "e", "--rank", 2)
    heads = [line for line in page.read_text().splitlines() if line.startswith("### ")]
    assert heads == [
        f"### adaptool resize {ADAPTER} {tmp_path / 'small'}",
        f"### adaptool combine {ADAPTER} {ADAPTER}",
        f"### adaptool convert {ADAPTER} {tmp_path / 'mlx'}",
        f"### adaptool extract {BASE} {tmp_path / 'tuned'} {tmp_path / 'e'}",
    ]


def test_inspect_validate_diff_summary(adaptool: Adaptool, page: Path) -> None:
    """The commands that only read; a check that says no is told with its findings."""
    adaptool("inspect", "--summary", page, ADAPTER)
    adaptool("diff", "--summary", page, ADAPTER, ADAPTER)
    adaptool("validate", "--summary", page, ADAPTER, "--target", "llamacpp", code=1)
    assert _heads(page) == [
        f"adaptool inspect {ADAPTER}",
        f"adaptool diff {ADAPTER} {ADAPTER}",
        f"adaptool validate {ADAPTER}",
    ]
    assert "<code>target-refused</code>" in page.read_text()


def test_pull_push_summary(adaptool: Adaptool, hub: StandIn, page: Path, tmp_path: Path) -> None:
    """The address stands as it was given, and the commit in the section."""
    adaptool("pull", "--summary", page, "hf://me/adapter", tmp_path / "out")
    adaptool("push", "--summary", page, ADAPTER, "hf://me/new")
    assert _heads(page) == [
        f"adaptool pull hf&#58;//me/adapter {tmp_path / 'out'}",
        f"adaptool push {ADAPTER} hf&#58;//me/new",
    ]
    assert hub.repos["me/adapter"].head in page.read_text()


def test_error_is_in_the_summary(adaptool: Adaptool, page: Path, tmp_path: Path) -> None:
    """Exit code, code, place and hint of every error; and the exit code is the error's."""
    shutil.copytree(ADAPTER, tmp_path / "out")
    adaptool("merge", "--summary", page, BASE, ADAPTER, tmp_path / "out", code=5)
    section = page.read_text()
    assert _heads(page) == [f"adaptool merge {BASE} {ADAPTER} {tmp_path / 'out'}"]
    assert "| 5 | <code>output-exists</code> | <code>" in section
    assert "is not empty <br>choose another name, or --overwrite |" in section


def test_wrong_value_of_a_flag_is_in_the_summary(adaptool: Adaptool, page: Path) -> None:
    """Whichever flag stands first on the command line."""
    adaptool("resize", ADAPTER, "--rank", "many", "--summary", page, code=2)
    assert _heads(page) == ["adaptool resize"]
    assert "| 2 | <code>usage</code> |" in page.read_text()


def test_bug_and_interruption_are_in_the_summary(page: Path) -> None:
    """Whatever ends the command is told; a summary is for finding out what happened."""
    for statement in ("raise KeyError('x')", "raise KeyboardInterrupt(15)"):
        patch = f"""
from adaptool import api
def inspect(path, **_):
    {statement}
api.inspect = inspect
"""
        run_patched(patch, "inspect", ADAPTER, "--summary", page)
    text = page.read_text()
    assert "| 70 | <code>internal</code> |  | unexpected KeyError: 'x'" in text
    assert "| 143 | <code>interrupted</code> |" in text


def test_summary_that_cannot_be_written_is_refused_first(
    adaptool: Adaptool, tmp_path: Path
) -> None:
    """Exit 5 before any work is done."""
    refused = adaptool(
        "merge", "--summary", tmp_path / "no" / "s.md", BASE, ADAPTER, tmp_path / "out", code=5
    )
    assert refused["error"]["code"] == "output-parent-missing"
    assert list(tmp_path.iterdir()) == []


def test_summary_that_fails_at_the_end_is_exit_5(page: Path, tmp_path: Path) -> None:
    """The work is done, and the error names the summary; an error of the work comes first."""
    patch = f"""
from adaptool import api
merge = api.merge
def then_in_the_way(*arguments, **options):
    import os, pathlib
    page = pathlib.Path({str(page)!r})
    page.unlink(missing_ok=True); page.mkdir(exist_ok=True)
    return merge(*arguments, **options)
api.merge = then_in_the_way
"""
    merge = ["merge", BASE, ADAPTER, tmp_path / "out", "--json", "--summary", page]
    answer = run_patched(patch, *merge)
    assert (answer.code, answer.json["error"]["file"]) == (5, str(page))
    assert (tmp_path / "out" / "adaptool.json").exists()
    page.rmdir()
    again = run_patched(patch, *merge)
    assert [error["file"] for error in again.json["errors"]] == [str(tmp_path / "out"), str(page)]


def test_names_of_strangers_are_no_markup(adaptool: Adaptool, page: Path, tmp_path: Path) -> None:
    """A tensor's name ends no cell and no line, starts no tag, no link and no workflow command."""
    hostile = "x|</table>`![a](http://b)`\n::add-mask::y\r\n# Title"
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    folder = tmp_path / "hostile"
    folder.mkdir()
    save_file({**tensors, hostile: next(iter(tensors.values())).clone()}, folder / "a.safetensors")
    body = json.loads((ADAPTER / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(body))
    said = adaptool("validate", folder / "a.safetensors", "--summary", page, code=1)
    assert any("add-mask" in json.dumps(finding) for finding in said["findings"])
    section = page.read_text().removeprefix("# Job\n\n")
    assert "add-mask" in section
    assert "</table>" not in section
    assert "http://" not in section
    # Every line is a heading of ours or a row of a table.
    assert {line[:2] for line in section.splitlines()} == {"", "##", "| "}
