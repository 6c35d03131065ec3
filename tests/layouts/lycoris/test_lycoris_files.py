"""LyCORIS' files: which they are, what of a fused module is whose, and what is refused."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptool import api, layouts
from adaptool.errors import AdaptoolError, MismatchError
from adaptool.findings import Code
from adaptool.layouts import kohya, lycoris
from adaptool.model.adapter import Delta
from adaptool.model.reading import Reading
from adaptool.store.adapter_files import open_adapter
from adaptool.tuners import tuners
from exact_numbers import exact_normal
from pipeline_adapters import Tensors, effect_of, factors, random_file, read, saved, values

FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FUSED = "lora_unet_double_blocks_0_img_attn_qkv"
SINGLE = "lora_unet_single_blocks_0_linear1"
FILE = "lora.safetensors"


def _random(shapes: dict[str, tuple[int, ...]], flat: str = FLAT) -> Tensors:
    rng = np.random.default_rng(4)
    return {
        f"{flat}.{name}": exact_normal(rng, *shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def _loha(out: int, inner: int, rank: int = 2) -> dict[str, tuple[int, ...]]:
    ends = {"a": (out, rank), "b": (rank, inner)}
    return {f"hada_w{place}_{end}": shape for place in (1, 2) for end, shape in ends.items()}


def _read(tmp_path: Path, tensors: Tensors, **given: Any) -> Any:
    return read(saved(tmp_path / FILE, tensors), Reading(**given))


def _matrix(delta: Delta) -> np.ndarray[Any, Any]:
    """The delta as its tuner's thin factors make it, in float64."""
    given = {role: torch.from_numpy(values(ref)) for role, ref in delta.roles.items()}
    b, a = tuners()[delta.tuner].product_factors(given, delta.terms, None)  # type: ignore[attr-defined]
    return (delta.terms.scaling * b @ a).numpy()


def _f8(tensors: Tensors, flat: str) -> dict[str, np.ndarray[Any, Any]]:
    return {key.removeprefix(f"{flat}."): value.astype("f8") for key, value in tensors.items()}


def test_kohya_file_is_not_lycoris(tmp_path: Path) -> None:
    """The names are the same: it takes an ending that LyCORIS alone writes."""
    saved(tmp_path / FILE, factors({FLAT: (8, 6)}, 2, ("down", "up")))
    with open_adapter(tmp_path / FILE) as files:
        assert lycoris.sniff(files).claimed == 0


def test_locon_beside_loha_is_lycoris(tmp_path: Path) -> None:
    """Its trainer takes an algorithm for each kind of layer; kohya knows a part of the keys."""
    locon = factors({FLAT[:-1] + "k": (8, 6)}, 2, ("down", "up"))
    saved(tmp_path / FILE, {**_random(_loha(8, 6)), **locon})
    with open_adapter(tmp_path / FILE) as files:
        assert lycoris.sniff(files).unclaimed == ()
        assert kohya.sniff(files).unclaimed
        found = layouts.decode(files)
    assert found.layout == "lycoris"
    assert {delta.tuner for delta in found.deltas} == {"loha", "lora"}


def test_real_lokr_of_qwen_is_read(tmp_path: Path) -> None:
    """Every key is claimed; two whole matrices have scale 1, whatever alpha says."""
    with open_adapter(random_file(tmp_path / FILE, "qwen_image_kohya")) as files:
        assert lycoris.sniff(files).unclaimed == ()
        found = layouts.decode(files)
        assert {delta.tuner for delta in found.deltas} == {"lokr"}
        assert {delta.terms.scaling for delta in found.deltas} == {1.0}
        assert all(delta.module.startswith("transformer.") for delta in found.deltas)


@pytest.mark.parametrize("prefix", ["lycoris_", "lora_unet_"])
def test_wrapper_names_no_component(prefix: str, tmp_path: Path) -> None:
    """`lycoris_` stands before whatever network was wrapped."""
    flat = f"{prefix}transformer_blocks_0_attn_to_q"
    found = _read(tmp_path, _random(_loha(8, 6), flat))
    assert [delta.module for delta in found.deltas] == [
        "transformer.transformer_blocks.0.attn.to_q"
    ]


def test_wrapped_text_encoder_is_found_by_its_names(tmp_path: Path) -> None:
    """Where it is no denoiser's module."""
    flat = "lycoris_text_model_encoder_layers_0_mlp_fc1"
    found = _read(tmp_path, _random(_loha(8, 6), flat))
    module = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert [delta.module for delta in found.deltas] == [module]


def test_loha_of_a_fused_module_is_split_by_its_outputs(tmp_path: Path) -> None:
    """Each part has its rows of both left factors."""
    tensors = _random(_loha(24, 8), FUSED)
    found = _read(tmp_path, tensors)
    w = _f8(tensors, FUSED)
    whole = (w["hada_w1_a"] @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"])
    for delta, part in zip(found.deltas, whole.reshape(3, 8, 8), strict=True):
        assert np.allclose(_matrix(delta), part, rtol=1e-12)


def test_tucker_loha_of_a_fused_module_is_split_by_its_outputs(tmp_path: Path) -> None:
    """There the outputs are the columns of the left factors."""
    shapes = {"hada_w1_a": (2, 24), "hada_w1_b": (2, 8), "hada_t1": (2, 2, 1, 1)}
    shapes |= {name.replace("1", "2", 1): shape for name, shape in shapes.items()}
    tensors = _random(shapes, FUSED)
    w = _f8(tensors, FUSED)
    parts = [
        np.einsum("ijxy,io,jc->oc", w[f"hada_t{n}"], w[f"hada_w{n}_a"], w[f"hada_w{n}_b"])
        for n in (1, 2)
    ]
    found = _read(tmp_path, tensors)
    for delta, part in zip(found.deltas, prod(parts).reshape(3, 8, 8), strict=True):
        assert np.allclose(_matrix(delta), part, rtol=1e-11, atol=1e-12)


def test_lokr_of_a_fused_module_is_split_between_its_blocks(tmp_path: Path) -> None:
    """kron's outputs come in blocks, one for each row of the left matrix."""
    tensors = _random({"lokr_w1": (6, 2), "lokr_w2": (4, 4)}, FUSED)
    w = _f8(tensors, FUSED)
    whole = np.kron(w["lokr_w1"], w["lokr_w2"])
    found = _read(tmp_path, tensors)
    assert [delta.module[-4:] for delta in found.deltas] == ["to_q", "to_k", "to_v"]
    for delta, part in zip(found.deltas, whole.reshape(3, 8, 8), strict=True):
        assert np.allclose(_matrix(delta), part, rtol=1e-12)


def test_lokr_whose_blocks_reach_over_modules_is_refused(tmp_path: Path) -> None:
    """7 blocks of 8 outputs would do, 4 of 14 do not."""
    with pytest.raises(MismatchError, match="blocks of 14 outputs") as caught:
        _read(tmp_path, _random({"lokr_w1": (4, 2), "lokr_w2": (14, 4)}, SINGLE))
    assert caught.value.code is Code.UNSUPPORTED
    assert "--base" in str(caught.value.hint)


def test_whole_difference_of_a_fused_module_is_split(tmp_path: Path) -> None:
    """The weight by rows, the bias as well."""
    tensors = _random({"diff": (24, 8), "diff_b": (24,)}, FUSED)
    found = effect_of(_read(tmp_path, tensors))
    weight, bias = tensors.values()
    start = "transformer.transformer_blocks.0.attn.to_"
    for place, part in enumerate("qkv"):
        rows = slice(8 * place, 8 * place + 8)
        assert np.array_equal(found.shifted[f"{start}{part}.weight"], weight[rows])
        assert np.array_equal(found.shifted[f"{start}{part}.bias"], bias[rows])


REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], Code]] = {
    "Diag-OFT": ({"oft_blocks": (2, 4, 4), "rescale": (8, 1)}, Code.TUNER_UNSUPPORTED),
    "BOFT": ({"oft_blocks": (2, 2, 4, 4)}, Code.TUNER_UNSUPPORTED),
    "T-LoRA": ({"q_layer.weight": (2, 6), "p_layer.weight": (8, 2)}, Code.TUNER_UNSUPPORTED),
    "LoHa with DoRA": ({**_loha(8, 6), "dora_scale": (8, 1)}, Code.TUNER_UNSUPPORTED),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_that_are_not_computed_are_named(kind: str, tmp_path: Path) -> None:
    """Recognised, and refused by what they are; exit 4."""
    shapes, code = REFUSED[kind]
    with pytest.raises(MismatchError) as caught:
        _read(tmp_path, _random(shapes))
    assert (caught.value.code, caught.value.exit_code) == (code, 4)
    assert caught.value.tensor
    assert FLAT in caught.value.tensor


@pytest.mark.parametrize(
    ("shapes", "code"),
    [
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 6)}, Code.FACTOR_MISSING),
        ({**_loha(8, 6), "hada_w2_b": (3, 6)}, Code.FACTOR_RANKS_DIFFER),
        ({**_loha(8, 6), "hada_w2_b": (2, 5)}, Code.SHAPE_MISMATCH),
        ({"lokr_w1": (2, 2)}, Code.FACTOR_MISSING),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 2)}, Code.FACTOR_MISSING),
        ({"weight": (8,)}, Code.FACTOR_MISSING),
        ({"a1.weight": (6, 2), "a2.weight": (2, 6), "b1.weight": (8, 2)}, Code.FACTOR_MISSING),
        ({**_loha(8, 6), "lokr_w1": (2, 2)}, Code.KEYS_UNRECOGNISED),
        ({**_loha(8, 6), "unheard_of": (2, 2)}, Code.KEYS_UNRECOGNISED),
    ],
)
def test_contradictions_are_refused(
    shapes: dict[str, tuple[int, ...]], code: Code, tmp_path: Path
) -> None:
    """Each with the file and the module."""
    with pytest.raises(AdaptoolError) as caught:
        _read(tmp_path, _random(shapes))
    assert (caught.value.code, caught.value.exit_code) == (code, 3)
    assert caught.value.file is not None
    assert FLAT in str(caught.value.tensor)


def test_alpha_of_loha_counts_once(tmp_path: Path) -> None:
    """alpha / r, as LyCORIS' forward; its merge has the square."""
    tensors = _random(_loha(8, 6, 4)) | {f"{FLAT}.alpha": np.asarray(np.float32(2))}
    (delta,) = _read(tmp_path, tensors).deltas
    assert (delta.module, delta.terms.scaling, delta.terms.rank) == (MODULE, 0.5, 4)


@pytest.mark.parametrize(
    "shapes",
    [_loha(16, 12), {"lokr_w1": (4, 3), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 4)}],
    ids=["loha", "lokr"],
)
def test_as_lora_is_the_same_delta(shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    """Into a layout that is written, by exact factors."""
    (before,) = _read(tmp_path, _random(shapes)).deltas
    api.convert(tmp_path / FILE, tmp_path / "out.safetensors", to="kohya", as_="lora")
    after = effect_of(read(tmp_path / "out.safetensors"))
    expected = _matrix(before)
    found = after.added[f"{before.module}.weight"]
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft"])
def test_other_algorithms_have_no_place_unless_made_lora(to: str, tmp_path: Path) -> None:
    """A PEFT config made anew is LoRA's: it would misread LoKr's tensors."""
    saved(tmp_path / FILE, _random({"lokr_w1": (4, 3), "lokr_w2": (4, 4)}))
    with pytest.raises(MismatchError) as caught:
        api.convert(tmp_path / FILE, tmp_path / "out", to=to)
    assert caught.value.code is Code.LAYOUT_CANNOT_HOLD
