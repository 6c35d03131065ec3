"""The schema that is shipped is that of the verbs, and says what the program says."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from jsonschema import Draft202012Validator

import adaptool
from adaptool.api.recipe_verbs import RecipeSchema, RecipeVerbs
from command_line import ROOT

SCHEMA: dict[str, Any] = json.loads(RecipeSchema.shipped())
VALIDATOR = Draft202012Validator(SCHEMA)
STEPS = SCHEMA["properties"]["steps"]["items"]["properties"]


def _says_no(text: str) -> bool:
    return not VALIDATOR.is_valid(yaml.safe_load(text))


def test_shipped_schema_is_that_of_the_verbs() -> None:
    """After a verb changed: `python tests/make_recipe_schema.py`."""
    assert RecipeSchema.shipped() == RecipeSchema.made()


def test_schema_is_a_schema() -> None:
    """Draft 2020-12 itself judges."""
    Draft202012Validator.check_schema(SCHEMA)


def test_every_verb_of_the_library_is_a_step_but_run() -> None:
    """A verb that the library gains is one that recipes know."""
    public = {name for name in adaptool.__all__ if name.islower() and not name.startswith("_")}
    assert set(STEPS) - {"name"} == public - {"run"}


@pytest.mark.parametrize("verb", sorted(set(STEPS) - {"name"}))
def test_options_are_the_keywords_of_the_verb(verb: str) -> None:
    """All of them, but what the run decides and what no text can say."""
    keywords = set(inspect.signature(getattr(adaptool, verb)).parameters)
    options = {word.replace("-", "_") for word in STEPS[verb]["properties"]}
    left_out = {"progress", "disk", "overwrite", "dry_run"}
    assert options == {keyword.strip("_") for keyword in keywords - left_out}


def test_recipe_of_the_fixtures_is_valid() -> None:
    """An editor with the schema finds nothing wrong with it."""
    VALIDATOR.validate(yaml.safe_load((ROOT / "fixtures" / "recipe.yaml").read_text()))


def test_recipe_of_the_readme_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema takes it, and so does the program, which runs none of it here."""
    text = (ROOT / "README.md").read_text().split("## Recipes\n\n```yaml\n")[1].split("```")[0]
    VALIDATOR.validate(yaml.safe_load(text))
    monkeypatch.chdir(tmp_path)
    # Not by the environment, which the client reads when it is imported: a test may have done so.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    Path("release.yaml").write_text(text)
    result = adaptool.run("release.yaml", set={"rank": 8})
    assert [step.status for step in result.steps] == ["failed", *["not-run"] * 3]
    assert result.exit_code == 6


WRONG = {
    "no schema": "steps: [{validate: {path: x}}]",
    "another schema": "schema: 2\nsteps: [{validate: {path: x}}]",
    "no steps": "schema: 1",
    "empty": "schema: 1\nsteps: []",
    "unknown key": "schema: 1\nenv: {}\nsteps: [{validate: {path: x}}]",
    "unknown verb": "schema: 1\nsteps: [{mrge: {}}]",
    "two verbs": "schema: 1\nsteps: [{validate: {path: x}, inspect: {path: x}}]",
    "no verb": "schema: 1\nsteps: [{name: x}]",
    "unknown option": "schema: 1\nsteps: [{validate: {path: x, overwrite: true}}]",
    "missing option": "schema: 1\nsteps: [{resize: {adapter: x, rank: 1}}]",
    "number": "schema: 1\nsteps: [{resize: {adapter: x, out: y, rank: many}}]",
    "word": "schema: 1\nsteps: [{resize: {adapter: x, out: y, rank: 1, dtype: half}}]",
    "flag": "schema: 1\nsteps: [{validate: {path: x, strict: 1}}]",
    "list": "schema: 1\nsteps: [{combine: {adapters: x, out: y}}]",
    "strength": "schema: 1\nsteps: [{merge: {base: x, adapter: y, out: z, add: [{path: a}]}}]",
    "name": "schema: 1\nsteps: [{name: 1x, validate: {path: x}}]",
    "variable": "schema: 1\nvariables: {a: [1]}\nsteps: [{validate: {path: x}}]",
}


@pytest.mark.parametrize("case", WRONG)
def test_schema_and_program_refuse_the_same(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the schema calls wrong is an error of the recipe, too."""
    assert _says_no(WRONG[case])
    monkeypatch.chdir(tmp_path)
    for name in "xya":
        Path(name).mkdir()
    Path("r.yaml").write_text(WRONG[case])
    with pytest.raises(adaptool.AdaptoolError) as caught:
        adaptool.run("r.yaml")
    assert (caught.value.file or "").startswith("r.yaml:")


def test_references_are_valid_wherever_a_value_is() -> None:
    """`${NAME}` stands for numbers, words and flags as well."""
    text = """
    schema: 1
    variables: {n: 1, w: keep, f: true, s: }
    steps:
      - resize: {adapter: x, out: y, rank: "${n}", dtype: "${w}"}
      - validate: {path: x, strict: "${f}"}
      - merge: {base: x, adapter: y, out: z, add: [{adapter: a, weight: "${n}"}, "b=${n}"]}
    """
    VALIDATOR.validate(yaml.safe_load(text))


def test_words_that_files_register_are_judged_by_the_program_alone() -> None:
    """A new method, layout or runtime is one file: the schema need not be made again."""
    known, fixed = RecipeVerbs.known().verbs, RecipeVerbs.fixed().verbs
    for verb, word in (("combine", "method"), ("convert", "to"), ("validate", "target")):
        assert known[verb].options[word].choices
        assert fixed[verb].options[word].choices == ()
