"""Merging into single-file checkpoints, which have the published names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import adaptool
from pipeline_models import MODELS, published, trained, with_component

TARGETS = {
    "flux": ["to_q", "to_v", "add_k_proj", "proj_mlp", "norm_out.linear", "ff.net.0.proj"],
    "sd3": ["to_q", "add_v_proj", "norm_out.linear", "norm1_context.linear", "pos_embed.proj"],
    "sd": ["to_q", "to_k", "proj_in", "conv1", "time_emb_proj"],
}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", MODELS)
def test_published_checkpoint_gets_the_rows_that_diffusers_model_gets(
    tmp_path: Path, family: str, dora: bool
) -> None:
    """One adapter into both forms of a base: the same numbers, at other names."""
    build, component = MODELS[family]
    torch.manual_seed(1)
    model = build()
    plain = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(plain, tmp_path / "base.safetensors")
    single = published(model, family)
    save_file(single, tmp_path / "single.safetensors")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS[family], use_dora=dora)
    trained(build, config, tmp_path / "saved")
    adapter = with_component(tmp_path / "saved", component)
    for base in ("base", "single"):
        adaptool.merge(tmp_path / f"{base}.safetensors", adapter, tmp_path / f"{base}-merged")
    model.load_state_dict(load_file(tmp_path / "base-merged" / "base.safetensors"))
    expected = published(model, family)
    found = load_file(tmp_path / "single-merged" / "single.safetensors")
    assert found.keys() == expected.keys()
    changed = [name for name, value in found.items() if not torch.equal(value, expected[name])]
    assert changed == []
    touched = {name for name, value in found.items() if not torch.equal(value, single[name])}
    assert len(touched) >= 4
