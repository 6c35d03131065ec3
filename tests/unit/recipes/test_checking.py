"""A recipe is checked as a whole before its first step: every error, each with its line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import adaptool
from adaptool.errors import AdaptoolError
from command_line import ROOT


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own with a copy of fixtures/."""
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _errors(text: str, **given: Any) -> list[AdaptoolError]:
    """What is wrong with the recipe `text`; nothing may be written meanwhile."""
    Path("r.yaml").write_text(text)
    before = sorted(Path().rglob("*"))
    with pytest.raises(AdaptoolError) as caught:
        adaptool.run("r.yaml", **given)
    assert sorted(Path().rglob("*")) == before
    return [caught.value, *caught.value.others]


def _steps(*steps: str, variables: str = "{}") -> str:
    lines = [f"  - {step}" for step in steps]
    return "\n".join(["schema: 1", f"variables: {variables}", "steps:", *lines, ""])


SLIM = "{name: slim, resize: {adapter: fixtures/adapter, out: build/slim, rank: 2}}"
# Step -> (code, exit, what the message says); the step stands on line 4, SLIM on line 5.
WRONG_STEPS = {
    "{mrge: {base: x}}": ("verb-unknown", 3, "'mrge' is no verb"),
    "{run: {recipe: r.yaml}}": ("verb-unknown", 3, "'run' is no verb"),
    "{validate: {path: fixtures/adapter, adapter: x}}": ("field-unknown", 3, "'adapter' is no op"),
    "{validate: {path: fixtures/adapter, dry-run: true}}": ("field-unknown", 3, "'dry-run' is no"),
    "{validate: {path: fixtures/adapter, progress: x}}": ("field-unknown", 3, "'progress' is no"),
    "{resize: {adapter: fixtures/adapter, rank: 2}}": ("field-missing", 3, "is missing"),
    "{validate: {path: fixtures/adapter, strict: yes}}": ("field-type", 3, "neither true nor"),
    "{validate: {path: [fixtures/adapter]}}": ("field-type", 3, "must be one value"),
    "{validate: {path: }}": ("field-missing", 3, "has no value"),
    "{validate: {path: nowhere}}": ("not-found", 2, "nowhere does not exist"),
    "{validate: {path: 'http://x/y'}}": ("field-value", 3, "neither a path nor hf"),
    "{validate: {path: fixtures/adapter, target: vlm}}": ("field-value", 3, "none of comfyui"),
    "{combine: {adapters: fixtures/adapter, out: x}}": ("field-type", 3, "must be a list"),
    "{combine: {adapters: [], out: x}}": ("field-value", 3, "is empty"),
    "{combine: {adapters: [fixtures/adapter], weights: [1, 2], out: x}}": ("usage", 2, "2 weights"),
    "{combine: {adapters: [fixtures/adapter], method: x, out: x}}": ("field-value", 3, "none of"),
    "{resize: {adapter: fixtures/adapter, rank: 2, out: x, dtype: half}}": (
        "field-value",
        3,
        "'half' is none of keep",
    ),
    "{resize: {adapter: fixtures/adapter, rank: 2.5, out: x}}": ("field-type", 3, "no whole"),
    "{resize: {adapter: fixtures/adapter, energy: .nan, out: x}}": ("field-type", 3, "no finite"),
    "{resize: {adapter: fixtures/adapter, budget: 5 bananas, out: x}}": (
        "field-type",
        3,
        "no size",
    ),
    "{resize: {adapter: fixtures/adapter, out: x}}": ("usage", 2, "exactly one of"),
    "{resize: {adapter: fixtures/adapter, rank: 2, threads: 0, out: x}}": (
        "usage",
        2,
        "at least 1",
    ),
    "{extract: {base: fixtures/base, tuned: fixtures/base, out: x}}": ("usage", 2, "exactly one"),
    "{convert: {adapter: fixtures/adapter, to: pefft, out: x}}": ("field-value", 3, "none of"),
    "{convert: {adapter: fixtures/adapter, to: peft, rank: 2, out: x}}": ("usage", 2, "LoRA form"),
    "{pull: {uri: me/x, out: x}}": ("usage", 2, "no repository"),
    "{merge: {base: fixtures/base, adapter: fixtures/adapter, out: x, add: [{path: x}]}}": (
        "field-unknown",
        3,
        "must hold adapter",
    ),
    "{resize: {adapter: fixtures/adapter, rank: 2, out: ../x}}": ("output-outside", 3, "outside"),
    "{resize: {adapter: fixtures/adapter, rank: 2, out: a/../../x}}": (
        "output-outside",
        3,
        "outside",
    ),
    "{resize: {adapter: fixtures/adapter, rank: 2, out: /tmp/x}}": ("output-outside", 3, "outside"),
    "{validate: {path: build/slim/x}}": ("step-order", 3, "made by step slim, which comes later"),
    "{validate: {path: fixtures/../build/slim}}": ("step-order", 3, "made by step slim"),
    "{resize: {adapter: x, rank: 2, out: x}}": ("step-order", 3, "made by this step itself"),
    "{validate: {path: '${steps.slim.out}'}}": ("variable-unset", 3, "no output of an earlier"),
    "{validate: {path: '${HOME}'}}": ("variable-unset", 3, "not declared"),
    "{validate: {path: '${HOME'}}": ("variable-unset", 3, "has no end"),
}


@pytest.mark.parametrize("step", WRONG_STEPS)
def test_wrong_step_is_refused_with_its_line(step: str) -> None:
    """Its code, its exit code, and one line that says what is wrong."""
    code, exit_code, words = WRONG_STEPS[step]
    (error,) = _errors(_steps(step, SLIM))
    assert (error.code, error.exit_code, error.file) == (code, exit_code, "r.yaml:4")
    assert words in error.message


def test_two_steps_cannot_write_the_same_place() -> None:
    """The second one is named: also where its output lies within the first one's."""
    for out in ("build/slim", "./build/slim/", "build/slim/in", "build"):
        second = f"{{resize: {{adapter: fixtures/adapter, out: {out}, rank: 1}}}}"
        (error,) = _errors(_steps(SLIM, second))
        assert (error.code, error.file) == ("step-order", "r.yaml:5")
        assert "is what step slim writes, too" in error.message


def test_all_errors_come_together_in_the_order_of_the_file() -> None:
    """One run says everything."""
    found = _errors(_steps("{mrge: {}}", SLIM.replace("2", "x"), "{validate: {path: no}}"))
    assert [error.file for error in found] == ["r.yaml:4", "r.yaml:5", "r.yaml:6"]


SHAPES = {
    "": "must be a mapping with schema and steps",
    "[]": "must be a mapping with schema and steps",
    "steps: [{validate: {path: x}}]": "is missing; write schema: 1",
    "schema: 2\nsteps: [{validate: {path: x}}]": "must be 1",
    "schema: 1": "is missing",
    "schema: 1\nsteps: []": "must be a list",
    "schema: 1\nsteps: {a: b}": "must be a list",
    "schema: 1\nsteps: [x]": "must be a mapping: a verb",
    "schema: 1\nsteps: [{name: x}]": "must hold one verb, holds none",
    "schema: 1\nsteps: [{merge: {}, verify: {}}]": "must hold one verb, holds merge, verify",
    "schema: 1\nsteps: [{merge: x}]": "must be a mapping of options",
    "schema: 1\nsteps: [{name: 1, merge: {}}]": "must begin with a letter",
    "schema: 1\nsteps: [{name: a, merge: {}}, {name: a, merge: {}}]": "name of an earlier step",
    "schema: 1\nvariables: [a]\nsteps: [{merge: {}}]": "must map names",
    "schema: 1\nvariables: {a: [b]}\nsteps: [{merge: {}}]": "must be a number or a text",
    "schema: 1\nvariables: {a b: c}\nsteps: [{merge: {}}]": "is no name",
    "schema: 1\nstate: []\nsteps: [{merge: {}}]": "must be the name of a file",
    "schema: 1\nenv: {}\nsteps: [{merge: {}}]": "is none of schema, variables, state, steps",
}


@pytest.mark.parametrize("text", SHAPES)
def test_wrong_shape_is_refused(text: str) -> None:
    """Exit 3, before any verb is looked at."""
    (error,) = _errors(text)
    assert error.exit_code == 3
    assert SHAPES[text] in error.message


def test_variable_without_a_value_must_be_set() -> None:
    """Exit 2 names every one of them; a value that is set has the declared name."""
    text = _steps(SLIM, variables="{a: , b: ~, c: 1}")
    found = _errors(text)
    assert [(error.field, error.exit_code) for error in found] == [("a", 2), ("b", 2)]
    (error,) = _errors(text, set={"a": 1, "b": 2, "d": 3})
    assert "d is no variable of it; declared: a, b, c" in error.message


def test_output_may_lie_where_the_caller_says() -> None:
    """Only what begins with a value from outside leads out of the current directory."""
    step = "{name: x, resize: {adapter: fixtures/adapter, out: '${to}/x', rank: 1}}"
    (error,) = _errors(_steps(step, variables="{to: /nowhere}"))
    assert error.code == "output-outside"
    outside = Path.cwd().parent / f"{Path.cwd().name}-outside"
    Path("r.yaml").write_text(_steps(step, variables="{to: build}"))
    assert adaptool.run("r.yaml", set={"to": outside}).ok
    assert (outside / "x" / "adaptool.json").is_file()


def test_state_cannot_lie_in_an_output_or_replace_another_file() -> None:
    """An output holds what its receipt lists; a file that is no state is left alone."""
    text = _steps(SLIM)
    (error,) = _errors(text.replace("schema: 1", "schema: 1\nstate: build/slim/state.json"))
    assert error.code == "step-order"
    (error,) = _errors(text.replace("schema: 1", "schema: 1\nstate: ../state.json"))
    assert error.code == "output-outside"
    config = "fixtures/adapter/adapter_config.json"
    (error,) = _errors(text.replace("schema: 1", f"schema: 1\nstate: {config}"))
    assert error.code == "receipt-invalid"
    # JSON is YAML: this recipe could be taken for a state.
    step = {"resize": {"adapter": "fixtures/adapter", "out": "x", "rank": 1}}
    recipe = {"schema": 1, "state": "r.yaml", "steps": [step]}
    (error,) = _errors(json.dumps(recipe))
    assert error.code == "receipt-invalid"
    assert json.loads(Path("r.yaml").read_text()) == recipe


def test_dollar_brace_can_be_written() -> None:
    """`$${` is a `${` that stands for itself."""
    Path("a${b").mkdir()
    Path("r.yaml").write_text(_steps("{validate: {path: 'a$${b'}}"))
    result = adaptool.run("r.yaml")
    assert result.failed is not None
    assert result.failed.error is None or "a${b" in str(result.failed.error)


def test_values_are_read_as_their_options_take_them() -> None:
    """Sizes, words, lists and weighted adapters; a text may look like a number."""
    Path("r.yaml").write_text(
        _steps(
            "{name: a, resize: {adapter: fixtures/adapter, out: '1', budget: 30 kB}}",
            "{name: b, merge: {base: fixtures/base, adapter: fixtures/adapter, out: '2', "
            "weight: 1e-1, max-shard-size: keep, add: ['${steps.a.out}=0.5', "
            "{adapter: fixtures/adapter, weight: -0.25}]}}",
        )
    )
    first, second = adaptool.run("r.yaml").steps
    assert first.result is not None
    assert first.result["bytes"] <= 30_000
    assert second.status == "done"
    receipt = Path("2/adaptool.json").read_text()
    assert all(f'"weight": {weight}' in receipt for weight in (0.1, 0.5, -0.25))
