"""Adapters of diffusion pipelines through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptool.store.adapter_files import open_adapter
from in_process import done, refused
from pipeline_adapters import effect_of, factors, random_file, read, saved, tensors_in

SHARED = {"transformer.transformer_blocks.0.attn.to_q": (8, 8)}


def test_convert_writes_diffusers_and_comfyui(tmp_path: Path) -> None:
    """There and back: the same bytes under the same names."""
    path = random_file(tmp_path / "ai-toolkit.safetensors", "flux_aitoolkit")
    done("convert", path, tmp_path / "diffusers", "--to", "diffusers")
    assert (tmp_path / "diffusers" / "pytorch_lora_weights.safetensors").is_file()
    done("convert", tmp_path / "diffusers", tmp_path / "again", "--to", "comfyui")
    again = tensors_in(tmp_path / "again")
    for name, value in tensors_in(tmp_path).items():
        assert again[name].tobytes() == value.tobytes()


def test_single_file_out_is_a_file(tmp_path: Path) -> None:
    """OUT with a suffix is one file, with the metadata in it."""
    path = random_file(tmp_path / "in.safetensors", "flux_xlabs")
    out = tmp_path / "out.safetensors"
    done("convert", path, out, "--to", "diffusers")
    effect_of(read(out)).assert_same(effect_of(read(path)))
    with open_adapter(out) as files:
        assert "lora_adapter_metadata" in files.header.metadata


def test_names_of_several_models_ask_for_the_base(tmp_path: Path) -> None:
    """Exit 4: an attention block's names alone do not say which checkpoint's they become."""
    path = saved(tmp_path / "some.safetensors", factors(SHARED))
    error = refused(4, "convert", path, tmp_path / "out", "--to", "comfyui")
    assert error["code"] == "layout-cannot-hold"
    assert "flux" in str(error["message"])
    assert "--base" in str(error["message"])
    assert not (tmp_path / "out").exists()


def test_base_decides_between_models_that_share_names(tmp_path: Path) -> None:
    """With a base of HunyuanVideo's names the same adapter is written under those."""
    path = saved(tmp_path / "some.safetensors", factors(SHARED))
    base = {"double_blocks.0.img_attn_qkv": (24, 8), "double_blocks.0.img_mlp.fc1": (32, 8)}
    plain = {
        f"{name.removesuffix('.lora_A.weight')}.weight": value
        for name, value in factors(base).items()
        if name.endswith("lora_A.weight")
    }
    checkpoint = saved(tmp_path / "base.safetensors", plain)
    done("convert", path, tmp_path / "out", "--to", "comfyui", "--base", checkpoint)
    (name, *_) = tensors_in(tmp_path / "out")
    assert name.startswith("diffusion_model.double_blocks.0.img_attn_qkv.")


@pytest.mark.parametrize("header", ["flux_aitoolkit", "flux_control", "flux_dora_onetrainer"])
def test_inspect_and_validate_read_real_names(tmp_path: Path, header: str) -> None:
    """Both commands take what the layouts decode."""
    path = random_file(tmp_path / "real.safetensors", header)
    shown = done("inspect", path, "--json").json
    assert shown["layout"] in {"comfyui", "bfl", "onetrainer"}
    done("validate", path)


def test_metadata_of_the_training_is_carried_and_the_factors_is_not(tmp_path: Path) -> None:
    """ai-toolkit's `software` goes along; a config of other factors would be a lie."""
    metadata = {"software": '{"name": "ai-toolkit"}', "ss_network_dim": "64"}
    tensors = factors({"diffusion_model.double_blocks.0.img_attn.proj": (8, 8)})
    path = saved(tmp_path / "in.safetensors", tensors, metadata)
    done("convert", path, tmp_path / "out", "--to", "comfyui")
    with open_adapter(tmp_path / "out") as files:
        assert files.header.metadata == {"format": "pt", "software": metadata["software"]}
