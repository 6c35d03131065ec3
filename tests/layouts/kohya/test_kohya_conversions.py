"""kohya's kinds on their way to PEFT and back, and the hashes of what is written."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from adaptool import api
from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.layouts import peft
from adaptool.model.encoding import Destination
from adaptool.store.adapter_files import open_adapter
from exact_numbers import exact_normal
from pipeline_adapters import (
    Tensors,
    converted,
    effect_of,
    factors,
    random_file,
    read,
    saved,
    tensors_in,
)

CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
FILE = "lora.safetensors"


def _tucker() -> Tensors:
    rng = np.random.default_rng(9)
    shapes = {"lora_up": (8, 4, 1, 1), "lora_mid": (4, 4, 3, 3), "lora_down": (4, 6, 1, 1)}
    return {
        f"{CONV}.{name}.weight": exact_normal(rng, *shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def test_tucker_convolution_keeps_its_rank(tmp_path: Path) -> None:
    """up, mid and down are A and B of the same rank: mid and down multiplied out."""
    tensors = _tucker()
    adapter = read(saved(tmp_path / FILE, tensors))
    up, mid, down = (value.astype(np.float64) for value in tensors.values())
    expected = np.einsum("oi,ijxy,jc->ocxy", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    ((_, found),) = effect_of(adapter).added.items()
    assert np.allclose(found.reshape(expected.shape), expected, rtol=1e-13)
    assert [delta.terms.rank for delta in adapter.deltas] == [4]
    there = read(converted(adapter, "peft", tmp_path / "peft"))
    back = read(converted(there, "kohya", tmp_path / "back") / FILE)
    after = effect_of(back)
    assert list(after.added) == [f"{delta.module}.weight" for delta in adapter.deltas]
    assert np.allclose(next(iter(after.added.values())), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "shape"), [(LINEAR, (8, 6)), (CONV, (8, 6, 3, 3))])
def test_dora_is_pefts_where_the_norm_runs_over_inputs(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """dora_scale (out, 1, ...) becomes the magnitude and comes back with the same bytes."""
    tensors = factors({name: shape}, 4, ("down", "up"))
    ones = (1,) * (len(shape) - 1)
    scale = np.random.default_rng(2).random((8, *ones)).astype(np.float32)
    tensors |= {f"{name}.dora_scale": scale, f"{name}.alpha": np.asarray(np.float32(2))}
    there = converted(read(saved(tmp_path / FILE, tensors)), "peft", tmp_path / "peft")
    config = json.loads((there / "adapter_config.json").read_text())
    assert (config["use_dora"], config["lora_alpha"], config["r"]) == (True, 2, 4)
    (magnitude,) = (v for k, v in tensors_in(there).items() if "magnitude" in k)
    assert magnitude.shape == ((8,) if len(shape) == 2 else (1, 8, 1, 1))
    back = tensors_in(converted(read(there), "kohya", tmp_path / "back"))
    assert sorted(back) == sorted(tensors)
    assert all(np.array_equal(back[key], value) for key, value in tensors.items())


def test_dora_over_outputs_comes_back_and_is_no_pefts(tmp_path: Path) -> None:
    """PEFT's magnitude has one number for each output; never reinterpreted."""
    tensors = factors({LINEAR: (8, 8)}, 4, ("down", "up"))
    tensors[f"{LINEAR}.dora_scale"] = np.arange(1, 9, dtype=np.float32)[None]
    adapter = read(saved(tmp_path / FILE, tensors))
    assert [delta.tuner for delta in adapter.deltas] == ["dora_input"]
    (loss,) = peft.losses(adapter)
    assert f"{LINEAR}.dora_scale" in loss.tensors
    with pytest.raises(MismatchError) as caught:
        api.convert(tmp_path / FILE, tmp_path / "out", to="peft")
    assert caught.value.code is Code.LAYOUT_CANNOT_HOLD
    assert not (tmp_path / "out").exists()
    back = tensors_in(converted(adapter, "kohya", tmp_path / "back"))
    back.pop(f"{LINEAR}.alpha")
    assert sorted(back) == sorted(tensors)
    assert all(np.array_equal(back[key], value) for key, value in tensors.items())


def test_single_component_has_no_prefix_in_peft(tmp_path: Path) -> None:
    """PEFT finds a UNet's modules by their own names; with a text encoder both have prefixes."""
    unet = factors({LINEAR: (8, 6)}, 4, ("down", "up"))
    encoder = factors({"lora_te_text_model_encoder_layers_0_mlp_fc1": (8, 6)}, 4, ("down", "up"))
    for tensors, start in ((unet, "mid_block."), ({**unet, **encoder}, "")):
        folder = tmp_path / f"peft{len(tensors)}"
        converted(read(saved(tmp_path / FILE, tensors)), "peft", folder)
        names = [key.removeprefix("base_model.model.") for key in tensors_in(folder)]
        if start:
            assert all(name.startswith(start) for name in names)
        else:
            assert {name.partition(".")[0] for name in names} == {"unet", "text_encoder"}
        back = read(converted(read(folder), "kohya", tmp_path / f"back{len(tensors)}") / FILE)
        effect_of(back).assert_same(effect_of(read(saved(tmp_path / FILE, tensors))))


def _hashes(tensors: dict[str, Any], metadata: dict[str, str]) -> tuple[str, str]:
    """As sd-scripts computes them, over the library's own serialisation."""
    training = {name: text for name, text in metadata.items() if name.startswith("ss_")}
    stream = BytesIO(save(tensors, training))
    length = int.from_bytes(stream.read(8), "little")
    stream.seek(8 + length)
    whole = hashlib.sha256(stream.read()).hexdigest()
    stream.seek(0x100000)
    return whole, hashlib.sha256(stream.read(0x10000)).hexdigest()[:8]


def test_hashes_are_those_that_sd_scripts_computes(tmp_path: Path) -> None:
    """Of the tensors' bytes, and of 64 KiB at 1 MiB; other metadata changes neither."""
    tensors = factors({LINEAR: (512, 768)}, 256, ("down", "up"))
    metadata = {"ss_seed": "1", "modelspec.title": "x" * 99}
    adapter = read(saved(tmp_path / FILE, tensors, metadata))
    folder = converted(adapter, "kohya", tmp_path / "out")
    with open_adapter(folder / FILE) as files:
        found = dict(files.header.metadata)
    expected = _hashes(load_file(folder / FILE), found)
    assert (found["sshs_model_hash"], found["sshs_legacy_hash"]) == expected
    assert found["modelspec.title"] == "x" * 99


def test_baked_alpha_is_the_rank(tmp_path: Path) -> None:
    """For readers that ignore alpha; the scale goes into one factor, in float32."""
    tensors = factors({LINEAR: (8, 6)}, 4, ("down", "up"))
    tensors[f"{LINEAR}.alpha"] = np.asarray(np.float32(1.3))
    before = read(saved(tmp_path / FILE, tensors))
    folder = converted(before, "kohya", tmp_path / "out", bake=True)
    assert tensors_in(folder)[f"{LINEAR}.alpha"] == 4.0
    effect_of(before).assert_same(effect_of(read(folder / FILE)), 1e-6)


@pytest.mark.parametrize("name", ["flux_kohya_with_te1", "anima_kohya"])
def test_command_writes_what_the_layout_encodes_twice_alike(name: str, tmp_path: Path) -> None:
    """Through the engine, with the hash of what was written; a second run has the same bytes."""
    path = random_file(tmp_path / FILE, name)
    outs = [tmp_path / f"{place}.safetensors" for place in range(2)]
    for out in outs:
        result = api.convert(path, out, to="kohya")
        assert (result.source, result.target, result.carried) == ("kohya", "kohya", ())
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with open_adapter(outs[0]) as files:
        digest = hashlib.sha256(outs[0].read_bytes()[len(files.header.raw) :]).hexdigest()
        assert files.header.metadata["sshs_model_hash"] == digest


def test_resized_file_says_its_new_rank_and_has_no_stale_hash(tmp_path: Path) -> None:
    """Numbers that are yet to be computed cannot be hashed while planning."""
    tensors = factors({LINEAR: (8, 6)}, 4, ("down", "up"))
    metadata = {"ss_network_dim": "4", "ss_network_alpha": "4", "sshs_model_hash": "0"}
    path = saved(tmp_path / FILE, tensors, metadata)
    api.resize(path, tmp_path / "small.safetensors", rank=2)
    with open_adapter(tmp_path / "small.safetensors") as files:
        found = dict(files.header.metadata)
        assert {ref.shape for ref in files.tensors.values()} == {(2, 6), (8, 2), ()}
    assert found["ss_network_dim"] == "2"
    assert "sshs_model_hash" not in found


def test_encoding_again_is_the_same(tmp_path: Path) -> None:
    """Planning changes nothing in the adapter."""
    adapter = read(random_file(tmp_path / FILE, "flux_kohya"))
    from adaptool.layouts import kohya

    first, second = (kohya.encode(adapter, Destination()) for _ in range(2))
    assert first.header == second.header
