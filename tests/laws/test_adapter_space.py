"""resize, combine and convert over every tuner's examples: what has factors keeps its delta."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import adaptool
import tuner_cases
from adaptool.errors import AdaptoolError
from adaptool.layouts import decode
from adaptool.ops.plain_lora import PLAIN, is_expressible
from adaptool.store.adapter_files import open_adapter
from golden_cases import Tensors, tensors_of
from tuner_cases import Case, Pair, make

every_case = tuner_cases.every_case()
WEIGHTS = "adapter_model.safetensors"
# Codes of what cannot be expressed, or not without a base's sizes.
REFUSALS = {
    "not-low-rank",
    "init-changed-base",
    "unsupported",
    "adapter-size-unknown",
    "layout-cannot-hold",  # whole tensors alone are no LoRA to PEFT
}


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The case of the test, on disk."""
    case = request.node.callspec.params["case"]
    assert isinstance(case, Case)
    return make(case, tmp_path_factory.getbasetemp())


def _expressible(adapter: Path) -> bool:
    with open_adapter(adapter) as files:
        found = decode(files)
    deltas = [delta for delta in found.deltas if delta.tuner not in PLAIN]
    return found.changed_base is None and all(map(is_expressible, deltas))


def _close(wanted: Tensors, found: Tensors) -> None:
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        difference = (value.double() - found[name].double()).norm()
        assert difference <= 2e-6 * value.double().norm() + 1e-12, name


@every_case
def test_converted_from_peft_to_peft_it_is_the_same_tensors(
    case: Case, pair: Pair, tmp_path: Path
) -> None:
    """Whatever the tuner: no name, no dtype and no bit is another one."""
    del case
    with open_adapter(pair.adapter) as files:
        if decode(files).layout != "peft":
            pytest.skip("a tuner that PEFT has no file for")
    adaptool.convert(pair.adapter, tmp_path / "out", to="peft")
    old, new = load_file(pair.adapter / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    with open_adapter(pair.adapter) as files:
        dropped = set(decode(files).dropped)
    assert old.keys() - dropped == new.keys()
    for name, value in new.items():
        assert value.dtype == old[name].dtype
        assert torch.equal(value.view(torch.uint8), old[name].view(torch.uint8)), name
    _close(pair.merged(tmp_path / "a"), _merged(pair, tmp_path / "out", tmp_path / "b"))


def _merged(pair: Pair, adapter: Path, out: Path) -> Tensors:
    adaptool.merge(pair.base, adapter, out)
    return tensors_of(out)


@every_case
def test_as_lora_merges_to_the_same_model_or_is_refused(
    case: Case, pair: Pair, tmp_path: Path
) -> None:
    """Exactly, in float32, wherever the delta is a product of thin factors."""
    del case
    try:
        adaptool.convert(pair.adapter, tmp_path / "out", to="lora")
    except AdaptoolError as error:
        assert error.exit_code == 4  # noqa: PT017 - a refusal has a code that is checked
        assert str(error.code) in REFUSALS  # noqa: PT017
        assert not (tmp_path / "out").exists()
        return
    assert _expressible(pair.adapter)
    with open_adapter(tmp_path / "out") as files:
        assert {delta.tuner for delta in decode(files).deltas} <= PLAIN
    _close(pair.merged(tmp_path / "a"), _merged(pair, tmp_path / "out", tmp_path / "b"))


@every_case
def test_combined_with_nothing_it_is_itself_or_is_refused(
    case: Case, pair: Pair, tmp_path: Path
) -> None:
    """One adapter at weight 1, by the exact sum."""
    del case
    try:
        adaptool.combine(pair.adapter, out=tmp_path / "out")
    except AdaptoolError as error:
        assert error.exit_code == 4  # noqa: PT017 - as above
        assert str(error.code) in REFUSALS  # noqa: PT017
        return
    _close(pair.merged(tmp_path / "a"), _merged(pair, tmp_path / "out", tmp_path / "b"))


@every_case
def test_resized_to_its_own_rank_it_is_itself_or_is_refused(
    case: Case, pair: Pair, tmp_path: Path
) -> None:
    """At full rank nothing is lost; DoRA keeps its magnitudes."""
    del case
    try:
        adaptool.resize(pair.adapter, tmp_path / "out", error=0.0, dtype="float32")
    except AdaptoolError as error:
        assert error.exit_code == 4  # noqa: PT017 - as above
        assert str(error.code) in REFUSALS  # noqa: PT017
        return
    _close(pair.merged(tmp_path / "a"), _merged(pair, tmp_path / "out", tmp_path / "b"))
