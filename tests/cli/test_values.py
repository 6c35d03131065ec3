"""Sizes, strengths and paths on the command line."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from adaptool.cli import values
from adaptool.errors import MismatchError, UsageError
from adaptool.model.options import Strength
from adaptool.store.addresses import as_written


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5GB", 5 * 10**9),
        ("500MB", 500 * 10**6),
        ("2GiB", 2 * 2**30),
        ("2gib", 2 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("10 KB", 10_000),
        ("1048576", 1048576),
        ("7B", 7),
        ("1TB", 10**12),
    ],
)
def test_size_is_decimal_unless_it_says_binary(text: str, count: int) -> None:
    """GB is 10^9 as the Hub's client has it, GiB is 2^30."""
    assert values.size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 apples", "1e9", "0", "0.1B", "5G", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """A size that could be meant two ways is not guessed."""
    with pytest.raises(click.BadParameter):
        values.size(text)


def test_the_hubs_client_reads_sizes_the_same_way() -> None:
    """`5GB` means one thing in transformers, the Hub's client and here."""
    from huggingface_hub.serialization import _base

    for text in ("5GB", "500MB", "3KB", "2TB"):
        assert values.size(text) == _base.parse_size_to_int(text)


def test_keep_is_no_size() -> None:
    """`keep` keeps the base's own shards."""
    assert values.size_or_keep("keep") is None


def test_strength_splits_at_the_last_equals(tmp_path: Path) -> None:
    """ADAPTER=W gives the adapter and its weight; ADAPTER alone leaves the weight open."""
    assert values.strength(f"{tmp_path}=0.5") == Strength(tmp_path, 0.5)
    assert values.strength(f"{tmp_path}=-2e-1") == Strength(tmp_path, -0.2)
    assert values.strength(f"{tmp_path}") == tmp_path


def test_absent_adapter_keeps_its_weight(tmp_path: Path) -> None:
    """A typo in the path is reported for the path, not for path=weight."""
    assert values.strength(f"{tmp_path}/no=0.5") == Strength(tmp_path / "no", 0.5)
    assert values.strength(f"{tmp_path}/a=b") == tmp_path / "a=b"


def test_folder_with_an_equals_in_its_name_is_a_folder(tmp_path: Path) -> None:
    """A sweep's folder lr=2 is not adapter lr at weight 2."""
    folder = tmp_path / "lr=2"
    folder.mkdir()
    assert values.strength(str(folder)) == folder
    assert values.strength(f"{folder}=0.5") == Strength(folder, 0.5)


def test_what_can_mean_two_adapters_is_refused(tmp_path: Path) -> None:
    """Where lr and lr=2 both exist, the weight must be written."""
    (tmp_path / "lr=2").mkdir()
    (tmp_path / "lr").mkdir()
    with pytest.raises(click.BadParameter, match="two adapters"):
        values.strength(str(tmp_path / "lr=2"))


@pytest.mark.parametrize("weight", ["", "x", "nan", "inf"])
def test_weight_that_is_no_finite_number_is_refused(weight: str, tmp_path: Path) -> None:
    """The error says which text was no number."""
    with pytest.raises((click.BadParameter, UsageError)):
        values.strength(f"{tmp_path}={weight}")


def test_uri_is_no_path_of_this_machine() -> None:
    """Where something is written, a path with a scheme is never looked up."""
    for text in ("hf://owner/name", "s3://bucket/key"):
        with pytest.raises(MismatchError):
            values.local_path(text)
    with pytest.raises(MismatchError):
        values.artifact("s3://bucket/key")


def test_address_on_the_hub_is_an_input() -> None:
    """With a weight, too; pathlib's one slash is undone where it is opened."""
    assert as_written(values.artifact("hf://owner/name@v1/a")) == "hf://owner/name@v1/a"
    found = values.strength("hf://owner/name=0.5")
    assert isinstance(found, Strength)
    assert (as_written(found.path), found.weight) == ("hf://owner/name", 0.5)


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_what_no_system_takes_as_a_path_is_refused(text: str) -> None:
    """An empty path is not the current directory."""
    with pytest.raises(click.BadParameter):
        values.local_path(text)


@pytest.mark.parametrize("text", ["auto", "cpu", "cuda", "cuda:0", "cuda:11"])
def test_device_is_taken(text: str) -> None:
    """The four forms of the contract."""
    assert values.device(text) == text


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "CPU", "cpu:0", "cuda:-1"])
def test_unknown_device_is_refused(text: str) -> None:
    """A typo does not fall back to the CPU."""
    with pytest.raises(click.BadParameter):
        values.device(text)
