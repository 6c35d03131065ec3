"""`validate` of several paths, and of the artifacts that files are part of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import ADAPTER, BASE

Adaptool = Callable[..., Any]


def test_validate_several_paths(adaptool: Adaptool) -> None:
    """One item a path, in their order; ok where all of them are."""
    said = adaptool("validate", "--json", ADAPTER, BASE)
    assert (said["ok"], [item["path"] for item in said["items"]]) == (
        True,
        [*map(str, (ADAPTER, BASE))],
    )
    said = adaptool("validate", ADAPTER, BASE, "--target", "llamacpp", code=1)
    first, _ = said["items"]
    assert (first["ok"], len(first["findings"])) == (False, 1)


def test_validate_one_path_has_its_findings_on_top(adaptool: Adaptool) -> None:
    """As it was before there could be several."""
    said = adaptool("validate", ADAPTER)
    assert (said["ok"], said["findings"], said["path"]) == (True, [], str(ADAPTER))


def test_validate_goes_on_after_a_path_that_is_no_artifact(
    adaptool: Adaptool, tmp_path: Path
) -> None:
    """Of several, each is told; alone it is a usage error."""
    adaptool("validate", tmp_path, code=2)
    adaptool("validate", tmp_path / "nothing", code=2)
    said = adaptool("validate", tmp_path, tmp_path / "nothing", ADAPTER, code=1)
    assert [item["ok"] for item in said["items"]] == [False, False, True]
    codes = [finding["code"] for item in said["items"] for finding in item["findings"]]
    assert codes == ["checkpoint-missing", "not-found"]


def test_validate_containing(adaptool: Adaptool, tmp_path: Path) -> None:
    """A file stands for the folder it is part of; one that is a whole adapter for itself."""
    alone = tmp_path / "alone.safetensors"
    shutil.copy(ADAPTER / "adapter_model.safetensors", alone)
    files = [*sorted(ADAPTER.iterdir()), *BASE.glob("model*"), BASE / "config.json", alone]
    said = adaptool("validate", "--containing", *files, code=1)
    assert [item["path"] for item in said["items"]] == [str(ADAPTER), str(BASE), str(alone)]
    assert [item["ok"] for item in said["items"]][:2] == [True, True]


def test_validate_people(adaptool: Adaptool) -> None:
    """A line for each path; of one path the verdict alone."""
    out, _ = adaptool("validate", ADAPTER, BASE, text=True)
    assert out == f"{ADAPTER}: ok: nothing found\n{BASE}: ok: nothing found\n"
    assert adaptool("validate", ADAPTER, text=True)[0] == "ok: nothing found\n"
