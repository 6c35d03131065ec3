"""The table of diffusers' denoisers is what its classes say."""

from __future__ import annotations

import json

import pytest

from models_from_diffusers import TABLE, described, names


def test_every_denoiser_has_a_row() -> None:
    """A new class of diffusers is taken into the table before its names are taken for another's."""
    assert sorted(json.loads(TABLE.read_text())) == names()


def test_a_class_is_described_as_in_the_table() -> None:
    """One class that is quick to build."""
    name = "AceStepTransformer1DModel"
    assert described(name) == json.loads(TABLE.read_text())[name]


@pytest.mark.slow
def test_table_is_generated_again_as_it_stands() -> None:
    """All of them."""
    assert {name: described(name) for name in names()} == json.loads(TABLE.read_text())
