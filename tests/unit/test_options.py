"""Options of a merge: one list of them, read from flags, keywords and receipts alike."""

from __future__ import annotations

import json

import pytest

from adaptool import UsageError
from adaptool.model.options import MergeOptions, OutputDtype, Tie


def test_options_survive_the_receipt() -> None:
    """Whatever was given comes back from JSON as it was."""
    options = MergeOptions().given(
        dtype="float16", tie="keep", max_shard_size=7, allow_drop=["a*"], skip_unmatched=True
    )
    assert (options.dtype, options.tie) == (OutputDtype.FLOAT16, Tie.KEEP)
    assert MergeOptions().given(**json.loads(json.dumps(options.as_json()))) == options


def test_none_leaves_an_option_as_it_was() -> None:
    """What verify is not given stays what the receipt says; false is given."""
    recorded = MergeOptions().given(tie="keep", skip_unmatched=True)
    assert recorded.given(tie=None, dtype=None) == recorded
    assert recorded.given(skip_unmatched=False).skip_unmatched is False


@pytest.mark.parametrize("value", ["sometimes", "", 3, ["keep"]])
def test_unknown_word_is_one_clear_error(value: object) -> None:
    """A library user gets the tree's error, with the words that would do."""
    with pytest.raises(UsageError) as caught:
        MergeOptions().given(tie=value)
    assert caught.value.field == "--tie"
    assert "untie, keep, error" in caught.value.message


def test_receipt_records_every_option() -> None:
    """A new option is recorded without another edit."""
    assert set(MergeOptions().as_json()) == set(MergeOptions.__dataclass_fields__)
