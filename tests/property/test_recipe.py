"""Whatever stands in a recipe ends in an error of ours, never in a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptool
from adaptool.errors import AdaptoolError, InternalError
from adaptool.recipes.document import Listed, Mapped, Node, Scalar, parse_yaml

WORDS = st.sampled_from(
    [
        *("schema", "steps", "variables", "state", "name", "merge", "resize", "combine", "verify"),
        *("base", "adapter", "adapters", "out", "rank", "add", "weight", "weights", "dtype", "x"),
        *("${x}", "${steps.x.out}", "$${", "${", "hf://a/b", "../x", "/", "", "~", "1", "1e999"),
    ]
)
SCALARS = WORDS | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=24,
)
STEPS = st.lists(st.dictionaries(WORDS, st.dictionaries(WORDS, TREES, max_size=5), max_size=2))
RECIPES = st.fixed_dictionaries(
    {"schema": st.just(1) | SCALARS, "steps": STEPS | TREES},
    optional={"variables": st.dictionaries(WORDS, SCALARS, max_size=3) | TREES, "state": SCALARS},
)


@pytest.fixture(scope="module", autouse=True)
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Recipes that hypothesis makes find no inputs: nothing is ever run."""
    with contextlib.chdir(tmp_path_factory.mktemp("empty")):
        yield


@given(RECIPES)
@settings(max_examples=300, deadline=None)
def test_any_recipe_is_an_error_of_ours(recipe: object) -> None:
    """Nearly right ones: each part may be anything."""
    _refused(yaml.safe_dump(recipe, allow_unicode=True).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_an_error_of_ours(raw: bytes) -> None:
    """Mostly no YAML at all."""
    _refused(raw)


@given(st.text(alphabet="[]{}:-?!&*|>'\"%@`,# \n\tab0.~$", max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_punctuation_is_an_error_of_ours(text: str) -> None:
    """What means something in YAML, in any order."""
    _refused(text.encode())


@given(TREES)
@settings(max_examples=300, deadline=None)
def test_tree_is_what_the_yaml_library_reads(tree: object) -> None:
    """Keys, order and nesting are those of yaml.safe_load; scalars are compared as texts."""
    text = yaml.safe_dump(tree, allow_unicode=True)
    with contextlib.suppress(AdaptoolError):
        found = parse_yaml(text.encode("utf-8", "surrogatepass"), "x")
        texts = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - makes texts, lists and dicts only
        assert _shape(found) == _shape_of(texts)


def _refused(raw: bytes) -> None:
    Path("r.yaml").write_bytes(raw)
    with pytest.raises(AdaptoolError) as caught:
        adaptool.run("r.yaml")
    assert not isinstance(caught.value, InternalError)
    assert "\n" not in str(caught.value)


def _shape(node: Node) -> object:
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Listed):
        return [_shape(each) for each in node.items]
    assert isinstance(node, Mapped)
    return {key: _shape(each) for key, each in node.items.items()}


def _shape_of(tree: object) -> object:
    if isinstance(tree, list):
        return [_shape_of(each) for each in tree]
    if isinstance(tree, dict):
        return {key: _shape_of(each) for key, each in tree.items()}
    return "" if tree is None else tree
