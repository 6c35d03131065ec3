"""What a merge must notice while it writes: values that do not fit, inputs that change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from adaptool import api
from adaptool.errors import InputError, IntegrityError
from adaptool.findings import Code
from small_pairs import Pair, config_of, drawn, lora, save_adapter, save_base, write

MODULE = "model.layers.0.mlp.up_proj"
NORM = "model.norm.weight"


def pair_with(norm: float, folder: Path) -> Pair:
    """A float32 base whose norm, which the adapter leaves alone, holds one value of note."""
    values = drawn(1, 9)
    values[7] = norm
    tensors = {
        "model.embed_tokens.weight": drawn(2, 8, 6),
        f"{MODULE}.weight": drawn(3, 8, 6),
        NORM: values,
    }
    save_base(folder / "base", tensors, {"model_type": "llama"}, "float32")
    factors = lora(MODULE, 8, 6, seed=4)
    save_adapter(folder / "adapter", factors, config_of(target_modules=["up_proj"]))
    return Pair(folder / "base", folder / "adapter")


@pytest.mark.parametrize("value", [65520.0, -1e30])
def test_base_value_that_a_narrower_dtype_cannot_hold_is_refused(
    value: float, tmp_path: Path
) -> None:
    """A finite weight never becomes infinite in silence, in a tensor no adapter touches either."""
    pair = pair_with(value, tmp_path)
    with pytest.raises(InputError) as caught:
        api.merge(pair.base, pair.adapter, tmp_path / "out", dtype="float16")
    assert caught.value.code is Code.RESULT_NOT_FINITE
    assert caught.value.tensor == NORM
    assert "1 base values do not fit F16" in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_largest_value_that_fits_is_written(tmp_path: Path) -> None:
    """65519 is nearest to float16's largest number, 65504."""
    pair = pair_with(65519.0, tmp_path)
    api.merge(pair.base, pair.adapter, tmp_path / "out", dtype="float16")
    assert _norm(tmp_path / "out")[7] == 65504


def test_infinity_of_the_base_stays(tmp_path: Path) -> None:
    """Some masks are infinite on purpose; what no adapter touches is not ours to judge."""
    pair = pair_with(-np.inf, tmp_path)
    api.merge(pair.base, pair.adapter, tmp_path / "out", dtype="float16")
    assert _norm(tmp_path / "out")[7] == -np.inf


def _norm(folder: Path) -> np.ndarray:
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            if NORM in opened.keys():  # noqa: SIM118 - safetensors' handle is no mapping
                return opened.get_tensor(NORM)
    raise AssertionError(NORM)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def _edit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    os.utime(path, ns=(1, 1))


def _swap(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize("change", [_append, _edit, _swap], ids=["grown", "edited", "replaced"])
@pytest.mark.parametrize(
    "name", ["base/model-00002-of-00003.safetensors", "adapter/adapter_model.safetensors"]
)
def test_input_that_changes_meanwhile_is_an_integrity_error(
    name: str, change: Callable[[Path], None], tmp_path: Path
) -> None:
    """B8: a mixture of two versions is not published, whichever input it was."""
    pair = write("lora", tmp_path)
    changed: list[Path] = []

    def progress(_: int, __: int) -> None:
        if not changed:
            changed.append(tmp_path / name)
            change(changed[0])

    with pytest.raises(IntegrityError) as caught:
        api.merge(pair.base, pair.adapter, tmp_path / "out", progress=progress, threads=1)
    assert caught.value.code is Code.FILE_CHANGED
    assert (caught.value.file or "").endswith(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
