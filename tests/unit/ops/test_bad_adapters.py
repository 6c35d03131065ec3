"""Rows C and D of the table of bad inputs, at library level."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from adaptool import api
from adaptool.errors import AdaptoolError
from adaptool.findings import Finding, Severity
from bad_adapters import CONFIGS, TENSORS, BadAdapter, good_pair

ROWS = (*CONFIGS, *TENSORS)


def rows(*, refused: bool, validated: bool = False) -> list[Any]:
    """The refused or the accepted rows, as parameters with their row's id."""
    return [
        pytest.param(bad, id=bad.row)
        for bad in ROWS
        if (bad.exit != 0) is refused and not (validated and bad.only_merge)
    ]


def written(bad: BadAdapter, folder: Path) -> tuple[Path, Path]:
    """The row's base and adapter on disk."""
    pair = good_pair()
    bad.spoil(pair)
    return pair.write(folder)


def assert_row(bad: BadAdapter, seen: Iterable[AdaptoolError | Finding]) -> None:
    """One of what was seen says what the row asks for."""
    found = [each for each in seen if each.code is bad.code]
    assert found, f"no {bad.code} among {[str(each) for each in seen]}"
    matching = [each for each in found if bad.tensor in (None, each.tensor)]
    assert matching, [each.tensor for each in found]
    assert any(bad.says in each.message for each in matching), [each.message for each in matching]
    assert any(bad.hint in (each.hint or "") for each in matching), [each.hint for each in matching]
    assert any(bad.file in (each.file or "") for each in matching), [each.file for each in matching]
    if bad.field is not None:
        assert any((each.field or "").startswith(bad.field) for each in matching)


def test_good_pair_has_no_findings(tmp_path: Path) -> None:
    """What the rows spoil is good: nothing is found, and it merges."""
    base, adapter = good_pair().write(tmp_path)
    assert api.validate(adapter, base=base, values=True).findings == ()
    assert api.validate(base, values=True).findings == ()
    assert api.merge(base, adapter, tmp_path / "out").touched == 4


@pytest.mark.parametrize("bad", rows(refused=True))
def test_merge_refuses_and_names_the_place(bad: BadAdapter, tmp_path: Path) -> None:
    """A merge ends with the row's exit code and names file, tensor and field; nothing is left."""
    base, adapter = written(bad, tmp_path)
    with pytest.raises(AdaptoolError) as caught:
        api.merge(base, adapter, tmp_path / "out", **bad.options)
    assert caught.value.code is bad.code
    assert caught.value.exit_code == bad.exit
    assert_row(bad, (caught.value, *caught.value.others))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", rows(refused=True, validated=True))
def test_validate_finds_what_merge_refuses(bad: BadAdapter, tmp_path: Path) -> None:
    """The same code, as an error finding among the others."""
    base, adapter = written(bad, tmp_path)
    result = api.validate(adapter, base=base, values=bad.values)
    assert not result.ok
    errors = [found for found in result.findings if found.severity is Severity.ERROR]
    assert_row(bad, errors)


@pytest.mark.parametrize("bad", rows(refused=False))
def test_merge_accepts_and_says_so(bad: BadAdapter, tmp_path: Path) -> None:
    """The merge goes through; its findings hold the row's, or none where the row has none."""
    base, adapter = written(bad, tmp_path)
    result = api.merge(base, adapter, tmp_path / "out", **bad.options)
    if bad.code is None:
        assert result.findings == ()
    else:
        assert_row(bad, result.findings)


@pytest.mark.parametrize("bad", rows(refused=False, validated=True))
def test_validate_says_what_merge_says(bad: BadAdapter, tmp_path: Path) -> None:
    """The same finding, and no error."""
    base, adapter = written(bad, tmp_path)
    result = api.validate(adapter, base=base, values=True)
    assert result.ok
    if bad.code is None:
        assert result.findings == ()
    else:
        assert_row(bad, result.findings)


def test_every_row_is_there() -> None:
    """The table has no hole: C1 to C34 and D1 to D23 (D24 to D26 are other commands')."""
    there = {bad.row.split("-")[0] for bad in ROWS}
    assert there == {f"C{i}" for i in range(1, 35)} | {f"D{i}" for i in range(1, 24)}


def test_row_ids_are_unique() -> None:
    """A failing row can be told from its id."""
    names = [bad.row for bad in ROWS]
    assert len(names) == len(set(names))
