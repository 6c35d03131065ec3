"""What combine and convert refuse rather than write: values and copies that contradict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import adaptool
from adaptool.errors import InputError, MismatchError
from command_line import ADAPTER
from golden_cases import BY_NAME, make

WEIGHTS = "adapter_model.safetensors"


def _changed(source: Path, out: Path, name: str, place: tuple[int, ...], value: float) -> Path:
    """A copy of the adapter with one other number."""
    shutil.copytree(source, out)
    tensors = load_file(source / WEIGHTS)
    (key,) = [key for key in tensors if key.endswith(name)]
    tensors[key][place] = value
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    return out


WRITING = {
    "combine": lambda bad, out: adaptool.combine(ADAPTER, bad, out=out),
    "combine half": lambda bad, out: adaptool.combine(ADAPTER, bad, weights=(1, 0.5), out=out),
    "convert": lambda bad, out: adaptool.convert(bad, out, to="mlx"),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("verb", WRITING)
def test_values_that_are_not_finite_are_found_as_they_are_written(
    verb: str, value: float, tmp_path: Path
) -> None:
    """Exit 3 naming the file, the tensor and the place; nothing is published."""
    tail = "layers.0.self_attn.q_proj.lora_B.weight"
    bad = _changed(ADAPTER, tmp_path / "bad", tail, (1, 1), value)
    columns = load_file(ADAPTER / WEIGHTS)[f"base_model.model.model.{tail}"].shape[1]
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        WRITING[verb](bad, out)
    error = caught.value
    assert str(error.code) == "not-finite"
    assert str(error.tensor).endswith(tail)
    assert str(error.file).startswith(str(bad))
    assert error.message.endswith(f"at {columns + 1}")
    assert not out.exists()


def test_copies_of_resized_embeddings_must_be_the_same(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """New rows that two trainings drew apart are not one base: exit 4; alike, they are carried."""
    first = make(BY_NAME["resized_targets"], tmp_path_factory.getbasetemp()).adapter
    name = "embed_tokens.base_layer.weight"
    other = _changed(first, tmp_path / "other", name, (69, 3), 0.25)
    with pytest.raises(MismatchError, match="copies of the base") as caught:
        adaptool.combine(first, other, weights=(0.5, 0.3), out=tmp_path / "out")
    assert str(caught.value.code) == "replaced-contradict"
    assert not (tmp_path / "out").exists()
    adaptool.combine(first, first, weights=(0.5, 0.3), out=tmp_path / "out")
    before, after = load_file(first / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    (key,) = [key for key in before if key.endswith(name)]
    assert torch.equal(before[key], after[key])


def test_rows_and_factors_of_one_embedding_have_no_place_in_peft(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PEFT raises where an embedding whose rows are trained is a target as well."""
    root = tmp_path_factory.getbasetemp()
    rows, factors = (make(BY_NAME[name], root).adapter for name in ("token_rows", "embedding"))
    with pytest.raises(MismatchError, match="token rows"):
        adaptool.combine(rows, factors, out=tmp_path / "out")


def test_every_module_gets_a_bias_where_one_has_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PEFT's lora_bias is one switch: without zeros the other modules' keys would be missing."""
    root = tmp_path_factory.getbasetemp()
    biased, plain = (make(BY_NAME[name], root).adapter for name in ("lora_bias_gpt2", "gpt2"))
    adaptool.combine(plain, biased, out=tmp_path / "out")
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["lora_bias"] is True
    modules = {key.removesuffix(".lora_A.weight") for key in tensors if ".lora_A." in key}
    assert {f"{module}.lora_B.bias" for module in modules} <= tensors.keys()


def test_a_size_that_no_tensor_tells_asks_for_the_base(tmp_path: Path) -> None:
    """FourierFT holds coefficients alone: without the base its factors would have no column."""
    folder = tmp_path / "fourier"
    folder.mkdir()
    key = "base_model.model.model.layers.0.self_attn.v_proj.fourierft_spectrum"
    save_file({key: torch.ones(16)}, folder / WEIGHTS, {"format": "pt"})
    config = {"peft_type": "FOURIERFT", "n_frequency": 16, "scaling": 150.0, "random_loc_seed": 7}
    config["target_modules"] = ["v_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(MismatchError) as caught:
        adaptool.combine(folder, out=tmp_path / "out", method="svd", rank=4)
    assert "--base" in str(caught.value.hint)
