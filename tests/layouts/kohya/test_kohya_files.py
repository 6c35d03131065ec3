"""kohya's files: what their keys, alphas and shapes mean, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptool import layouts
from adaptool.errors import AdaptoolError, InputError, MismatchError
from adaptool.findings import Code
from adaptool.layouts import kohya
from adaptool.model.reading import BaseNames, Reading
from adaptool.store.adapter_files import open_adapter
from exact_numbers import exact_normal
from pipeline_adapters import (
    HEADERS,
    Tensors,
    converted,
    effect_of,
    factors,
    random_file,
    read,
    saved,
    tensors_in,
    values,
)

REAL = ("flux_kohya", "flux_kohya_with_te1", "anima_kohya")
QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
KEY = QUERY[:-1] + "k"
MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def _pair(name: str, shape: tuple[int, ...] = (8, 6), rank: int = 4) -> Tensors:
    return factors({name: shape}, rank, ("down", "up"))


def _read(tmp_path: Path, tensors: Tensors, **given: Any) -> Any:
    return read(saved(tmp_path / "lora.safetensors", tensors), Reading(**given))


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_kohyas_and_every_key_is_claimed(name: str, tmp_path: Path) -> None:
    """No other layout claims as much."""
    with open_adapter(random_file(tmp_path / "lora.safetensors", name)) as files:
        found = kohya.sniff(files)
        assert (found.claimed, found.unclaimed) == (len(files.tensors), ())
        assert layouts.decode(files).layout == "kohya"


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("between", ["kohya", "peft"])
def test_real_files_come_back_with_the_same_bytes(name: str, between: str, tmp_path: Path) -> None:
    """Factors of fused modules are split and fused again; alpha is written in float32."""
    path = random_file(tmp_path / "lora.safetensors", name)
    there = converted(read(path), between, tmp_path / "there")
    folder = converted(read(there if between == "peft" else _file(there)), "kohya", tmp_path / "b")
    before, after = tensors_in(tmp_path), tensors_in(folder)
    assert sorted(before) == sorted(after)
    for key, value in before.items():
        assert value.tobytes() == after[key].astype(value.dtype).tobytes(), key


def _file(folder: Path) -> Path:
    return folder / "lora.safetensors"


@pytest.mark.parametrize(
    ("alpha", "scaling"),
    [
        (None, 1.0),
        (np.float32(0.0), 1.0),
        (np.float32(2.0), 0.5),
        (np.array([2.0], np.float16), 0.5),
        (np.array(2, np.int64), 0.5),
        (np.float32(-2.0), -0.5),
    ],
)
def test_alpha_is_divided_by_the_rank(alpha: Any, scaling: float, tmp_path: Path) -> None:
    """0, or none, means the rank; its shape and dtype may be any."""
    tensors = _pair(QUERY)
    if alpha is not None:
        tensors[f"{QUERY}.alpha"] = np.asarray(alpha)
    (delta,) = _read(tmp_path, tensors).deltas
    assert (delta.module, delta.terms.scaling, delta.terms.rank) == (MODULE, scaling, 4)


def test_alpha_of_the_caller_serves_modules_without_one(tmp_path: Path) -> None:
    """The file's own alphas win."""
    tensors = {**_pair(QUERY), **_pair(KEY), f"{KEY}.alpha": np.asarray(np.float32(1))}
    found = _read(tmp_path, tensors, alpha=8.0)
    scalings = {delta.module[-1]: delta.terms.scaling for delta in found.deltas}
    assert scalings == {"q": 2.0, "k": 0.25}
    assert {delta.terms.scaling for delta in _read(tmp_path, _pair(QUERY), scale=0.3).deltas} == {
        0.3
    }


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (((4, 6, 3, 3), (8, 4, 1, 1)), ((4, 6, 3, 3), (8, 4, 1, 1))),
        (((4, 6, 3, 3), (8, 4)), ((4, 6, 3, 3), (8, 4, 1, 1))),
        (((4, 6, 1, 1), (8, 4, 1, 1)), ((4, 6, 1, 1), (8, 4, 1, 1))),
        (((4, 6), (8, 4, 1, 1)), ((4, 6, 1, 1), (8, 4, 1, 1))),
    ],
)
def test_convolutions_may_have_one_factor_as_a_matrix(
    shapes: tuple[tuple[int, ...], ...], expected: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    """As DyLoRA writes them."""
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    down, up = (np.ones(shape, np.float32) for shape in shapes)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    (delta,) = _read(tmp_path, tensors).deltas
    assert (delta.roles["A"].shape, delta.roles["B"].shape) == expected


NAMES = {
    "lora_te_text_model_encoder_layers_3_mlp_fc1": (
        "text_encoder.text_model.encoder.layers.3.mlp.fc1"
    ),
    "lora_te2_text_model_encoder_layers_31_self_attn_out_proj": (
        "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj"
    ),
    "lora_te3_encoder_block_3_layer_1_DenseReluDense_wi_0": (
        "text_encoder_2.encoder.block.3.layer.1.DenseReluDense.wi_0"
    ),
    "lora_te_layers_3_self_attn_q_proj": "text_encoder.layers.3.self_attn.q_proj",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj": (
        "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    ),
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_out_0": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0"
    ),
    "lora_unet_joint_blocks_3_x_block_mlp_fc1": "transformer.transformer_blocks.3.ff.net.0.proj",
    "lora_unet_blocks_3_self_attn_q": "transformer.blocks.3.attn1.to_q",
}


@pytest.mark.parametrize(("flat", "module"), NAMES.items())
def test_flattened_name_leads_to_a_module(flat: str, module: str, tmp_path: Path) -> None:
    """Of diffusers' and transformers' models, whatever the trainer called it."""
    assert [delta.module for delta in _read(tmp_path, _pair(flat)).deltas] == [module]


def test_third_encoder_is_the_third_where_there_is_a_second(tmp_path: Path) -> None:
    """SD3 has two CLIPs and T5, Flux one CLIP and T5: kohya calls T5 `te3` in both."""
    second = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    third = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    found = _read(tmp_path, {**_pair(second), **_pair(third)})
    assert [delta.module.partition(".")[0] for delta in found.deltas] == [
        "text_encoder_2",
        "text_encoder_3",
    ]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_names_of_the_base_come_first(prefix: str, tmp_path: Path) -> None:
    """Its own spelling says where the underscores were dots."""
    base = BaseNames({f"{prefix}my_blocks.0.to_q.weight": (8, 6)}, None)
    found = _read(tmp_path, _pair("lora_unet_my_blocks_0_to_q"), base=base)
    assert [delta.module for delta in found.deltas] == ["transformer.my_blocks.0.to_q"]


def test_fused_module_of_the_base_stays_whole(tmp_path: Path) -> None:
    """Where its parts cannot be told apart: a norm that runs over the outputs of q, k and v."""
    flat = "lora_unet_double_blocks_0_img_attn_qkv"
    base = BaseNames({"double_blocks.0.img_attn.qkv.weight": (24, 8)}, None)
    scale = {f"{flat}.dora_scale": np.ones((1, 8), np.float32)}
    found = _read(tmp_path, _pair(flat, (24, 8)) | scale, base=base)
    assert [delta.module for delta in found.deltas] == ["transformer.double_blocks.0.img_attn.qkv"]
    written = tensors_in(converted(found, "kohya", tmp_path / "out"))
    assert {name.partition(".")[0] for name in written} == {flat}


def test_unknown_modules_are_listed(tmp_path: Path) -> None:
    """Up to 20 of them; --base is what helps."""
    tensors: Tensors = {}
    for place in range(25):
        tensors |= _pair(f"lora_unet_strange_{place}_to_q")
    with pytest.raises(InputError, match="25 of 25 modules") as caught:
        _read(tmp_path, tensors)
    assert caught.value.code is Code.KEYS_UNRECOGNISED
    assert str(caught.value).count("lora_unet_strange") == 21
    assert "--base" in str(caught.value.hint)


def test_names_that_fit_two_models_are_refused(tmp_path: Path) -> None:
    """Z-Image and Lumina 2 have this name in common; diffusers calls it differently in each."""
    with pytest.raises(MismatchError) as caught:
        _read(tmp_path, _pair("lora_unet_layers_0_feed_forward_w1"))
    assert caught.value.code is Code.LAYOUT_AMBIGUOUS
    assert "--base" in str(caught.value.hint)


def test_key_of_no_known_kind_is_refused_unless_it_may_be_dropped(tmp_path: Path) -> None:
    """An embedding that was trained along is no LoRA."""
    extra = "bundle_emb.sks.string_to_param.*"
    tensors = {**_pair(QUERY), extra: np.ones((1, 8), np.float32)}
    with pytest.raises(InputError, match=r"bundle_emb\.sks") as caught:
        _read(tmp_path, tensors)
    assert caught.value.code is Code.KEYS_UNRECOGNISED
    assert _read(tmp_path, tensors, allow_drop=("bundle_emb.*",)).dropped == (extra,)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({f"{QUERY}.lora_up.weight": None}, Code.FACTOR_MISSING),
        ({f"{QUERY}.lora_down.weight": None}, Code.FACTOR_MISSING),
        ({f"{QUERY}.lora_up.weight": np.ones((8, 3), np.float32)}, Code.FACTOR_RANKS_DIFFER),
        ({f"{QUERY}.lora_up.weight": np.ones((8, 4, 3, 3), np.float32)}, Code.SHAPE_MISMATCH),
        ({f"{QUERY}.lora_up.weight": np.ones((8, 4), np.int8)}, Code.DTYPE_NOT_FLOAT),
        ({f"{QUERY}.lora_up.weight": np.ones((0, 4), np.float32)}, Code.ZERO_SIZE),
        ({f"{QUERY}.alpha": np.ones(3, np.float32)}, Code.SHAPE_MISMATCH),
        ({f"{QUERY}.alpha": np.float32("nan")}, Code.SCALING_NOT_FINITE),
        ({f"{QUERY}.alpha": np.asarray(True)}, Code.DTYPE_NOT_FLOAT),
        ({f"{QUERY}.dora_scale": np.ones((8, 6), np.float32)}, Code.SHAPE_MISMATCH),
        ({f"{QUERY}.lora_mid.weight": np.ones((3, 4, 3, 3), np.float32)}, Code.SHAPE_MISMATCH),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], code: Code, tmp_path: Path) -> None:
    """By the file's name and the tensor's, with the shapes."""
    tensors = {**_pair(QUERY), **change}
    present = {name: np.asarray(value) for name, value in tensors.items() if value is not None}
    with pytest.raises(AdaptoolError) as caught:
        _read(tmp_path, present)
    assert (caught.value.code, caught.value.exit_code) == (code, 3)
    assert caught.value.file is not None
    assert QUERY in str(caught.value.tensor)


def test_norm_over_outputs_of_a_fused_module_has_no_parts(tmp_path: Path) -> None:
    """dora_scale (1, in) of a qkv: the norms run over q, k and v together."""
    flat = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {**_pair(flat, (24, 8)), f"{flat}.dora_scale": np.ones((1, 8), np.float32)}
    with pytest.raises(MismatchError) as caught:
        _read(tmp_path, tensors)
    assert caught.value.code is Code.UNSUPPORTED


def _block_diagonal(rank: int, kept: tuple[int, ...] = (0, 1, 2)) -> Tensors:
    """A fused qkv (24, 8) as trainers that split write it; parts not `kept` are zeros."""
    flat = "lora_unet_double_blocks_0_img_attn_qkv"
    rng = np.random.default_rng(5)
    up = np.zeros((24, rank * len(kept)), np.float32)
    for place, part in enumerate(kept):
        block = exact_normal(rng, 8, rank)
        up[8 * part : 8 * part + 8, rank * place : rank * place + rank] = block
    down = exact_normal(rng, rank * len(kept), 8).astype(np.float32)
    return {f"{flat}.lora_up.weight": up, f"{flat}.lora_down.weight": down}


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 2), (1,), (1, 2)])
def test_block_diagonal_fused_factors_split_at_their_own_rank(
    kept: tuple[int, ...], tmp_path: Path
) -> None:
    """Exactly, and back to the same bytes; a part that is all zeros beside others has no delta."""
    tensors = _block_diagonal(2, kept)
    found = _read(tmp_path, tensors)
    if len(kept) > 1:
        assert [delta.module[-1] for delta in found.deltas] == ["qkv"[part] for part in kept]
        assert {delta.terms.rank for delta in found.deltas} == {2}
    up, down = tensors.values()
    whole = (up.astype(np.float64) @ down.astype(np.float64)).reshape(3, 8, 8)
    for delta in found.deltas:
        part = "qkv".index(delta.module[-1])
        product = values(delta.roles["B"]) @ values(delta.roles["A"])
        assert np.array_equal(product * delta.terms.scaling, whole[part])
    written = tensors_in(converted(found, "kohya", tmp_path / "out"))
    for name, value in tensors.items():
        assert np.array_equal(written[name], value)


def test_dense_fused_factors_share_a(tmp_path: Path) -> None:
    """Each part has all of A and its own rows of B, at the same scale."""
    flat = "lora_unet_single_blocks_0_linear1"
    found = _read(tmp_path, {**_pair(flat, (56, 8)), f"{flat}.alpha": np.asarray(np.float32(2))})
    names = [delta.module.rpartition(".")[2] for delta in found.deltas]
    assert names == ["to_q", "to_k", "to_v", "proj_mlp"]
    assert [delta.terms.out for delta in found.deltas] == [8, 8, 8, 32]
    assert {delta.terms.scaling for delta in found.deltas} == {0.5}


def test_parts_of_different_scales_are_fused_in_float32(tmp_path: Path) -> None:
    """One module has one alpha: the ratio of the others goes into their factor."""
    module = "transformer.transformer_blocks.0.attn.to_"
    tensors = factors({f"{module}{part}": (64, 64) for part in "qv"})
    config = '{"transformer.r": 2, "transformer.lora_alpha": 3, "transformer.alpha_pattern": '
    metadata = {"lora_adapter_metadata": config + '{"to_v": 5}}', "ss_base_model_version": "flux1"}
    before = read(saved(tmp_path / "d.safetensors", tensors, metadata))
    folder = converted(before, "kohya", tmp_path / "out")
    after = effect_of(read(_file(folder)))
    effect_of(before).assert_same(after, 1e-6)


def test_modules_of_several_models_are_not_guessed(tmp_path: Path) -> None:
    """Flux, SD3 and HunyuanVideo share these names, and kohya's differ; nothing is written."""
    module = "transformer.transformer_blocks.0.attn.to_q"
    adapter = read(saved(tmp_path / "d.safetensors", factors({module: (64, 64)})))
    (loss,) = kohya.losses(adapter)
    assert "--base" in loss.why
    assert set(loss.tensors) == {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}


def test_metadata_of_the_training_is_kept(tmp_path: Path) -> None:
    """All of ss_* and modelspec; the hashes are those of the new file."""
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "ss_tag_frequency": "{}",
        "modelspec.title": "x",
        "sshs_model_hash": "0" * 64,
        "sshs_legacy_hash": "0" * 8,
        "unrelated": "no",
    }
    before = read(saved(tmp_path / "lora.safetensors", _pair(QUERY), metadata))
    with open_adapter(_file(converted(before, "kohya", tmp_path / "out"))) as files:
        after = files.header.metadata
    changed = {name for name in metadata if after.get(name) != metadata[name]}
    assert changed == {"sshs_model_hash", "sshs_legacy_hash", "unrelated"}


def test_file_says_what_it_is_for(tmp_path: Path) -> None:
    """Where several architectures share names, the next reader is told which it was."""
    with open_adapter(random_file(tmp_path / "lora.safetensors", "flux_kohya")) as files:
        folder = converted(layouts.decode(files), "kohya", tmp_path / "out")
    with open_adapter(_file(folder)) as files:
        found = files.header.metadata
    assert (found["ss_base_model_version"], found["ss_network_dim"]) == ("flux1", "16")


def test_headers_here_are_the_facts_they_say() -> None:
    """Each names its source."""
    for name in REAL:
        assert '"source"' in (HEADERS / f"{name}.json").read_text()[:20]
