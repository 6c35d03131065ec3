"""Every flag of `run`, through the real command line, and the recipe in fixtures/."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import ROOT

Adaptool = Callable[..., Any]
RECIPE = """\
schema: 1
variables:
  out: build
  rank: 2
steps:
  - name: slim
    resize: {adapter: fixtures/adapter, out: "${out}/slim", rank: "${rank}"}
  - validate: {path: "${steps.slim.out}", base: fixtures/base}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a copy of fixtures/ and the recipe above, which is the current one."""
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    (tmp_path / "release.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _statuses(said: Any) -> list[str]:
    return [step["status"] for step in said["steps"]]


def _everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file below `folder`."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_recipe_of_the_fixtures_does_nothing_the_second_time(
    adaptool: Adaptool, here: Path
) -> None:
    """First every step is done; then all are skipped, and no file is touched."""
    first = adaptool("run", "fixtures/recipe.yaml")
    assert set(_statuses(first)) == {"done"}
    assert {step["verb"] for step in first["steps"]} >= {"resize", "combine", "convert", "merge"}
    before = _everything(here)
    second = adaptool("run", "fixtures/recipe.yaml")
    assert set(_statuses(second)) == {"skipped"}
    assert _everything(here) == before
    out, _ = adaptool("run", "fixtures/recipe.yaml", text=True)
    assert out.endswith(f"ok: {len(first['steps'])} skipped\n")


def test_run_json(adaptool: Adaptool, here: Path) -> None:
    """Each step with its verb's own JSON; a skipped one has that of when it was done."""
    said = adaptool("run", "--json", "release.yaml")
    assert (said["schema"], said["ok"], said["recipe"]) == (1, True, "release.yaml")
    slim, validate = said["steps"]
    assert (slim["name"], slim["verb"], slim["status"]) == ("slim", "resize", "done")
    assert slim["result"]["out"] == "build/slim"
    assert {module["rank_after"] for module in slim["result"]["modules"]} == {2}
    assert validate["result"]["ok"] is True
    again = adaptool("run", "--json", "release.yaml")
    assert [step["result"] for step in again["steps"]] == [slim["result"], validate["result"]]
    assert [step["seconds"] for step in again["steps"]] == [None, None]
    assert (here / "release.state.json").is_file()
    assert "seconds" not in (here / "release.state.json").read_text()


def test_run_quiet(adaptool: Adaptool, here: Path) -> None:
    """Nothing is said of what went well; what failed is."""
    assert adaptool("run", "--quiet", "release.yaml", text=True) == ("", "")
    shutil.rmtree(here / "fixtures" / "base")
    (here / "fixtures" / "base").mkdir()
    out, err = adaptool("run", "--quiet", "release.yaml", text=True, code=2)
    assert err.startswith("error: fixtures/base: ")
    assert "not ok: 1 skipped, 1 failed" in out


def test_run_set(adaptool: Adaptool, here: Path) -> None:
    """Declared variables only; two variants in two places are both remembered."""
    adaptool("run", "release.yaml", "--set", "rank=3", "--set", "out=other")
    receipt = json.loads((here / "other" / "slim" / "adaptool.json").read_text())
    assert receipt["options"]["rank"] == 3
    adaptool("run", "release.yaml")
    again = adaptool("run", "release.yaml", "--set", "rank=3", "--set", "out=other")
    assert _statuses(again) == ["skipped", "skipped"]
    said = adaptool("run", "release.yaml", "--set", "rnk=3", code=2)
    assert said["error"]["code"] == "variable-unset"
    assert "declared: out, rank" in said["error"]["message"]
    adaptool("run", "release.yaml", "--set", "rank", code=2)


def test_run_force(adaptool: Adaptool, here: Path) -> None:
    """Everything is done again, and gives the same bytes."""
    adaptool("run", "release.yaml")
    before = {name: content for name, (_, content) in _everything(here / "build").items()}
    assert _statuses(adaptool("run", "release.yaml", "--force")) == ["done", "done"]
    after = {name: content for name, (_, content) in _everything(here / "build").items()}
    assert after == before


def test_run_overwrite(adaptool: Adaptool, here: Path) -> None:
    """What no earlier run of the recipe made is in the way, unless it may be replaced."""
    adaptool("resize", "fixtures/adapter", "slim", "--rank", "1")
    (here / "build").mkdir()
    (here / "slim").rename(here / "build" / "slim")
    said = adaptool("run", "release.yaml", code=5)
    assert said["error"]["code"] == "output-exists"
    assert _statuses(said) == ["failed", "not-run"]
    assert _statuses(adaptool("run", "release.yaml", "--overwrite")) == ["done", "done"]


def test_run_dry_run(adaptool: Adaptool, here: Path) -> None:
    """Says what would be done, and writes nothing."""
    before = _everything(here)
    assert _statuses(adaptool("run", "--dry-run", "release.yaml")) == ["would-run", "would-run"]
    assert _everything(here) == before
    adaptool("run", "release.yaml")
    before = _everything(here)
    assert _statuses(adaptool("run", "--dry-run", "release.yaml")) == ["skipped", "skipped"]
    out, _ = adaptool("run", "--dry-run", "release.yaml", "--set", "rank=1", text=True)
    assert "would-run" in out
    assert _everything(here) == before


def test_run_device_and_threads(adaptool: Adaptool, here: Path) -> None:
    """They are handed to the steps that compute, and are no reason to do a step again."""
    del here
    adaptool("run", "release.yaml", "--device", "cpu", "--threads", "1")
    again = adaptool("run", "release.yaml", "--device", "auto", "--threads", "2")
    assert _statuses(again) == ["skipped", "skipped"]
    said = adaptool("run", "release.yaml", "--device", "cuda:99", "--force", code=7)
    assert said["error"]["code"] == "device-missing"


def test_run_schema(adaptool: Adaptool, here: Path) -> None:
    """The schema that lies in the package, without a recipe."""
    del here
    out, _ = adaptool("run", "--schema", text=True)
    assert out == (ROOT / "adaptool" / "recipes" / "recipe.schema.json").read_text()


def test_run_summary(adaptool: Adaptool, here: Path) -> None:
    """A table of the steps is added; of a failing recipe, the errors as well."""
    adaptool("run", "release.yaml", "--summary", "summary.md")
    text = (here / "summary.md").read_text()
    assert "| <code>slim</code> | resize | done |" in text
    (here / "release.yaml").write_text(RECIPE.replace("rank: 2", "rank: none"))
    adaptool("run", "release.yaml", "--summary", "summary.md", code=3)
    added = (here / "summary.md").read_text().removeprefix(text)
    assert "<code>field-type</code>" in added
    assert "'none' is no whole number" in added
