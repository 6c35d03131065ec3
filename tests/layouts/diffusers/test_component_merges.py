"""A base that is one model of a pipeline, and an adapter for two models that have its modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adaptool import api
from adaptool.errors import MismatchError
from adaptool.findings import Code
from pipeline_adapters import Tensors, factors, saved

MODULE = "text_model.encoder.layers.0.mlp.fc1"
PLAIN = "encoder.layers.0.mlp.fc1"  # as transformers 5 has it


def _merged(tmp_path: Path, sizes: dict[str, tuple[int, int]], **options: object) -> Tensors:
    """What becomes of a base of (8, 4) under the adapter's modules, and the base before."""
    base = {f"{PLAIN}.weight": np.ones((8, 4), np.float32)}
    (tmp_path / "base").mkdir(exist_ok=True)
    save_file(base, tmp_path / "base" / "model.safetensors")
    adapter = saved(tmp_path / "two.safetensors", factors(sizes))
    api.merge(tmp_path / "base", adapter, tmp_path / "out", overwrite=True, **options)
    return load_file(tmp_path / "out" / "model.safetensors")


def test_two_encoders_of_one_size_are_never_both_added(tmp_path: Path) -> None:
    """The base does not say which of them it is; the hint leaves one out, and that works."""
    sizes = {f"{name}.{MODULE}": (8, 4) for name in ("text_encoder", "text_encoder_2")}
    with pytest.raises(MismatchError, match="text_encoder_2 of the pipeline") as caught:
        _merged(tmp_path, sizes)
    assert caught.value.code is Code.LAYOUT_AMBIGUOUS
    pattern = str(caught.value.hint).split("'")[1]
    assert pattern.startswith("text_encoder_2.")
    found = _merged(tmp_path, sizes, allow_drop=[pattern])
    first = factors(sizes)
    stem = f"text_encoder.{MODULE}.lora_"
    added = first[f"{stem}B.weight"] @ first[f"{stem}A.weight"]
    assert np.allclose(found[f"{PLAIN}.weight"], 1 + added, atol=1e-6)


def test_encoder_of_another_size_is_left_out_where_that_is_allowed(tmp_path: Path) -> None:
    """SDXL's two encoders have different widths: sizes say which of them the base is."""
    sizes = {f"text_encoder.{MODULE}": (8, 4), f"text_encoder_2.{MODULE}": (16, 6)}
    found = _merged(tmp_path, sizes, skip_unmatched=True)
    tensors = factors(sizes)
    stem = f"text_encoder.{MODULE}.lora_"
    added = tensors[f"{stem}B.weight"] @ tensors[f"{stem}A.weight"]
    assert np.allclose(found[f"{PLAIN}.weight"], 1 + added, atol=1e-6)


def test_two_denoisers_are_never_both_added(tmp_path: Path) -> None:
    """Wan 2.2 has two, with the same modules."""
    sizes = {f"{name}.blocks.0.attn1.to_q": (8, 4) for name in ("transformer", "transformer_2")}
    save_file(
        {"blocks.0.attn1.to_q.weight": np.ones((8, 4), np.float32)}, tmp_path / "wan.safetensors"
    )
    adapter = saved(tmp_path / "two.safetensors", factors(sizes))
    with pytest.raises(MismatchError, match="transformer_2 of the pipeline"):
        api.merge(tmp_path / "wan.safetensors", adapter, tmp_path / "out")
