"""Every verb of the library is a step that runs as the function does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import adaptool
from command_line import ROOT

RECIPE = """\
schema: 1
steps:
  - inspect: {path: fixtures/adapter, more: [fixtures/base], html: build/page.html}
  - validate: {path: fixtures/adapter, more: [fixtures/base], strict: false}
  - name: slim
    resize: {adapter: fixtures/adapter, out: build/slim, error: 0.7, max-rank: 4}
  - name: both
    combine: {adapters: [fixtures/adapter, build/slim], weights: [1, -0.5], out: build/both}
  - name: baked
    convert: {adapter: build/both, out: build/baked.safetensors, to: peft, bake-scale: true}
  - name: merged
    merge:
      base: fixtures/base
      adapter: build/baked.safetensors
      out: build/merged
      weight: 0.5
      add: ["build/slim=0.25", {adapter: fixtures/adapter, weight: -1}]
      reversible: true
  - verify:
      base: fixtures/base
      adapter: build/baked.safetensors
      merged: build/merged
      add: [build/slim=0.25, fixtures/adapter=-1]
      exact: true
  - name: base
    unmerge:
      merged: build/merged
      adapter: build/baked.safetensors
      add: [build/slim, fixtures/adapter]
      out: build/base
      exact: true
  - diff: {a: build/base, b: fixtures/base}
  - extract: {base: fixtures/base, tuned: build/merged, out: build/extracted, rank: 2}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The directory after the run, and its answer."""
    home = tmp_path_factory.mktemp("verbs")
    shutil.copytree(ROOT / "fixtures", home / "fixtures")
    (home / "r.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield adaptool.run("r.yaml")


def test_all_verbs_but_those_of_the_hub_were_done(made: Any) -> None:
    """pull and push are in tests/cli/test_run_hub.py; run is no step."""
    public = {name for name in adaptool.__all__ if name.islower() and not name.startswith("_")}
    assert {step.verb for step in made.steps} == public - {"pull", "push", "run"}
    assert {step.status for step in made.steps} == {"done"}


def test_outputs_are_those_of_the_functions(made: Any, tmp_path: Path) -> None:
    """The same calls in Python write the same bytes."""
    del made
    adaptool.resize("fixtures/adapter", tmp_path / "slim", error=0.7, max_rank=4)
    adaptool.combine(
        "fixtures/adapter", tmp_path / "slim", weights=[1, -0.5], out=tmp_path / "both"
    )
    adaptool.convert(tmp_path / "both", tmp_path / "baked.safetensors", to="peft", bake_scale=True)
    for name in ("slim/adapter_model.safetensors", "both/adapter_model.safetensors"):
        assert Path("build", name).read_bytes() == (tmp_path / name).read_bytes()
    baked = Path("build/baked.safetensors").read_bytes()
    assert baked == (tmp_path / "baked.safetensors").read_bytes()


def test_options_reach_the_verb(made: Any) -> None:
    """Weights, further adapters and switches stand in the receipt; the base came back whole."""
    del made
    receipt = json.loads(Path("build/merged/adaptool.json").read_text())
    adapters = [entry for entry in receipt["inputs"] if entry.get("weight") is not None]
    assert [entry["weight"] for entry in adapters] == [0.5, 0.25, -1.0]
    for file in Path("fixtures/base").glob("*.safetensors"):
        assert Path("build/base", file.name).read_bytes() == file.read_bytes()


def test_results_are_those_of_the_verbs(made: Any) -> None:
    """Under each step the JSON of its verb, and the findings of all once more."""
    steps = {step.name: step.result for step in made.steps}
    assert steps["diff"]["equal"] is True
    assert steps["verify"]["tensors"]["different"] == 0
    assert [item["kind"] for item in steps["inspect"]["items"]] == ["adapter", "checkpoint"]
    assert {"items", "ok"} <= set(steps["validate"]) | {"ok"}
    assert Path("build/page.html").stat().st_size > 1000
    body = made.as_json()
    assert body["findings"] == [finding.as_json() for finding in made.findings]
