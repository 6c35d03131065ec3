"""extract: what was merged in comes out again, and PEFT loads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

import adaptool
import golden_cases
from adaptool.errors import MismatchError, UsageError
from adaptool.model.options import Strength
from golden_cases import BY_NAME, load, quietly, tensors_of
from tiny_models import answer

# Full rank of what was merged, so that the extraction is exact up to rounding.
CASES = (
    "every_linear",
    "gpt2",
    "bert",
    "t5",
    "vit",
    "embedding",
    "saved_norm",
    "convolutions",
    "mixtral_experts",
    "gpt_oss_experts",
    "tied_embedding",
    "dora",
)
RANK = 12


def _merged(name: str, tmp_path: Path, factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = golden_cases.make(BY_NAME[name], factory.getbasetemp())
    adaptool.merge(made.base, made.adapter, tmp_path / "tuned", weight=1.0)
    return made.base, tmp_path / "tuned"


@pytest.mark.parametrize("name", CASES)
def test_merging_what_was_extracted_gives_the_tuned_model(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every tensor to float32 rounding; DoRA's full-rank change is kept by the energy rule."""
    base, tuned = _merged(name, tmp_path, tmp_path_factory)
    if name == "tied_embedding":
        _tie_again(tuned)
    adaptool.extract(base, tuned, tmp_path / "adapter", energy=1.0)
    adaptool.merge(base, tmp_path / "adapter", tmp_path / "again")
    wanted, found = tensors_of(tuned), tensors_of(tmp_path / "again")
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        difference = (value.double() - found[key].double()).norm()
        assert difference <= 1e-6 * value.double().norm(), key


def _tie_again(tuned: Path) -> None:
    """The head is the embedding: what a full fine-tune of a tied model looks like."""
    tensors = tensors_of(tuned)
    for file in tuned.glob("model*"):
        file.unlink()
    tensors.pop("lm_head.weight", None)
    save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
    config = (tuned / "config.json").read_text()
    (tuned / "config.json").write_text(
        config.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )


@pytest.mark.parametrize("name", ["every_linear", "gpt2", "bert", "vit", "saved_norm"])
def test_peft_loads_it_and_computes_the_tuned_model(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The adapter on the untouched base answers as the tuned model does."""
    base, tuned = _merged(name, tmp_path, tmp_path_factory)
    adaptool.extract(base, tuned, tmp_path / "adapter", rank=RANK)
    model = BY_NAME[name].model
    with quietly():
        adapted = PeftModel.from_pretrained(load(model, base), tmp_path / "adapter").eval()
        truth = load(model, tuned)
    assert torch.allclose(answer(adapted, model), answer(truth, model), atol=1e-4)


@pytest.mark.parametrize("exact", [False, True])
def test_stated_error_is_the_true_one(
    exact: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Per module |D - BA| / |D| against torch's full SVD in float64."""
    base, tuned = _merged("every_linear", tmp_path, tmp_path_factory)
    result = adaptool.extract(base, tuned, tmp_path / "adapter", rank=2, exact=exact)
    old, new = tensors_of(base), tensors_of(tuned)
    lost = total = 0.0
    for row in result.modules:
        key = f"{row.module}.weight"
        values = torch.linalg.svdvals(new[key].double() - old[key].double())
        lost, total = lost + float(values[2:].norm()) ** 2, total + float(values.norm()) ** 2
        assert row.relative_error == pytest.approx(float(values[2:].norm() / values.norm()))
    assert result.relative_error == pytest.approx((lost / total) ** 0.5)


def test_energy_takes_the_least_rank(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of every matrix; ranks that differ stand in rank_pattern."""
    base, tuned = _merged("patterns", tmp_path, tmp_path_factory)
    result = adaptool.extract(base, tuned, tmp_path / "adapter", energy=0.9)
    old, new = tensors_of(base), tensors_of(tuned)
    for row in result.modules:
        key = f"{row.module}.weight"
        squares = torch.linalg.svdvals(new[key].double() - old[key].double()) ** 2
        kept = squares.cumsum(0) / squares.sum()
        assert row.rank == int((kept < 0.9 - 1e-12).sum()) + 1


def test_quantities_of_several_dtypes_and_shards(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A bfloat16 base against a float32 model in small shards: the difference is float64's."""
    made = golden_cases.make(BY_NAME["linear_bfloat16"], tmp_path_factory.getbasetemp())
    adaptool.merge(
        made.base, made.adapter, tmp_path / "tuned", dtype="float32", max_shard_size=20_000
    )
    adaptool.extract(made.base, tmp_path / "tuned", tmp_path / "adapter", energy=1.0)
    adaptool.merge(made.base, tmp_path / "adapter", tmp_path / "again", dtype="float32")
    wanted, found = tensors_of(tmp_path / "tuned"), tensors_of(tmp_path / "again")
    for key, value in wanted.items():
        assert (value.double() - found[key].double()).norm() <= 1e-6 * value.double().norm(), key


def test_bytes_do_not_depend_on_threads(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One worker or three: the same file."""
    base, tuned = _merged("every_linear", tmp_path, tmp_path_factory)
    contents = set()
    for threads in (1, 3):
        out = tmp_path / str(threads)
        adaptool.extract(base, tuned, out, rank=3, threads=threads)
        contents.add((out / "adapter_model.safetensors").read_bytes())
    assert len(contents) == 1


def test_nothing_to_extract_is_said(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exit 4: the same model twice, or another model."""
    base = golden_cases.make(BY_NAME["plain"], tmp_path_factory.getbasetemp()).base
    shutil.copytree(base, tmp_path / "same")
    with pytest.raises(MismatchError) as raised:
        adaptool.extract(base, tmp_path / "same", tmp_path / "out", rank=2)
    assert str(raised.value.code) == "nothing-to-do"
    other = golden_cases.make(BY_NAME["gpt2"], tmp_path_factory.getbasetemp()).base
    with pytest.raises(MismatchError) as raised:
        adaptool.extract(base, other, tmp_path / "out", rank=2)
    assert str(raised.value.code) == "module-not-in-base"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{}, {"rank": 0}, {"energy": 1.2}, {"rank": 2, "energy": 0.5}])
def test_bad_rules_are_usage_errors(options: dict[str, float], tmp_path: Path) -> None:
    """Exit 2 before anything is read."""
    with pytest.raises(UsageError):
        adaptool.extract(tmp_path, tmp_path, tmp_path / "out", **options)


def test_a_sum_of_two_adapters_is_extracted_whole(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """diff of the extraction with combine's exact sum: the same deltas."""
    made = [
        golden_cases.make(BY_NAME[name], tmp_path_factory.getbasetemp())
        for name in ("every_linear", "plain")
    ]
    adaptool.merge(
        made[0].base,
        made[0].adapter,
        tmp_path / "tuned",
        add=[Strength(made[1].adapter, 0.5)],
        dtype="float32",
    )
    adaptool.combine(made[0].adapter, made[1].adapter, weights=(1.0, 0.5), out=tmp_path / "sum")
    adaptool.extract(made[0].base, tmp_path / "tuned", tmp_path / "adapter", energy=1.0)
    assert adaptool.diff(tmp_path / "sum", tmp_path / "adapter").relative_error < 1e-5
