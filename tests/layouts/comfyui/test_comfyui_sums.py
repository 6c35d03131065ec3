"""combine of ComfyUI files: a weight's and a bias's difference are summed apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import adaptool
from pipeline_adapters import factors, saved

NAME = "diffusion_model.blocks.0.self_attn.q"
OTHER = "diffusion_model.blocks.1.self_attn.q"


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float64) for name, value in load_file(path).items()}


@pytest.mark.parametrize("order", [1, -1])
def test_weight_and_bias_differences_are_parameters_of_their_own(
    order: int, tmp_path: Path
) -> None:
    """The bias is not broadcast into the weight; the LoRA beside it stays the LoRA."""
    rng = np.random.default_rng(0)
    lora = {**factors({NAME: (8, 8)}, 2, ("down", "up")), f"{NAME}.alpha": np.float32(1)}
    whole = {
        f"{OTHER}.diff": rng.standard_normal((8, 8)).astype(np.float32),
        f"{OTHER}.diff_b": np.arange(8, dtype=np.float32),
        f"{NAME}.diff_b": np.ones(8, np.float32),
    }
    paths = [
        saved(tmp_path / "a.safetensors", {k: np.asarray(v) for k, v in lora.items()}),
        saved(tmp_path / "b.safetensors", whole),
    ][::order]
    weights = (0.5, -2.0)[::order]
    out = tmp_path / "out.safetensors"
    adaptool.combine(*paths, weights=weights, out=out)
    found = _arrays(out)
    up, down = (found[f"{NAME}.lora_{side}.weight"] for side in ("up", "down"))
    rank = down.shape[0]
    scale = found.get(f"{NAME}.alpha", np.float64(rank)) / rank
    expected = 0.5 * 0.5 * lora[f"{NAME}.lora_up.weight"] @ lora[f"{NAME}.lora_down.weight"]
    assert np.allclose(scale * up @ down, expected, atol=1e-6)
    assert np.allclose(found[f"{OTHER}.diff"], -2.0 * whole[f"{OTHER}.diff"])
    assert np.allclose(found[f"{OTHER}.diff_b"], -2.0 * whole[f"{OTHER}.diff_b"])
    assert np.allclose(found[f"{NAME}.diff_b"], -2.0)
