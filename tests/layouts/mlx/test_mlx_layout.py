"""MLX-LM's layout, against its rules written down once more in numpy.

The rules, of mlx-lm 0.32.2, tuner/lora.py and tuner/dora.py: a linear layer's delta is
scale * lora_b.T @ lora_a.T, an embedding's scale * lora_a @ lora_b, a switch layer's
scale * lora_b @ lora_a for each expert.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import adaptool
import plain_adapters as plain
from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from exact_numbers import drawn
from small_pairs import PREFIX

Array = np.ndarray[Any, np.dtype[Any]]
RSLORA = {
    "use_rslora": True,
    "rank_pattern": {"mlp.up_proj": 6, "layers.0.self_attn.q_proj": 2},
    "alpha_pattern": {"v_proj": 3},
}


def _updates(folder: Path) -> dict[str, Array]:
    """What mlx-lm adds to each module's weight; experts stacked."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scale, rank = config["lora_parameters"]["scale"], config["lora_parameters"]["rank"]
    tensors = load_file(folder / "adapters.safetensors")
    found = {}
    for key in tensors:
        if key.endswith(".lora_a"):
            module = key.removesuffix(".lora_a")
            a, b = (tensors[f"{module}.lora_{x}"].astype("float64") for x in "ab")
            if b.ndim == 3:
                assert a.shape[1] == b.shape[2] == rank
                found[module] = scale * b @ a
            else:
                assert a.shape[1] == b.shape[0] == rank
                turned = scale * (a @ b)
                found[module] = turned if module.endswith("embed_tokens") else turned.T
    return found


def _convert(adapter: Path, out: Path, to: str, **options: Any) -> Path:
    adaptool.convert(adapter, out, to=to, **options)
    return out


def test_one_rank_and_scale_is_only_turned(tmp_path: Path) -> None:
    """Factors keep their bits, and come back with them."""
    peft = plain.write(
        tmp_path / "a", plain.layered({**plain.ATTENTION, **plain.MLP}), embedding=True
    )
    mlx = _convert(peft, tmp_path / "m", "mlx")
    plain.same(plain.deltas(peft), _updates(mlx))
    tensors, before = (
        load_file(mlx / "adapters.safetensors"),
        load_file(peft / "adapter_model.safetensors"),
    )
    key = "model.layers.1.mlp.up_proj"
    assert (tensors[f"{key}.lora_a"] == before[f"{PREFIX}{key}.lora_A.weight"].T).all()
    back = _convert(mlx, tmp_path / "b", "peft")
    assert plain.stored(back) == plain.stored(peft)


def test_ranks_are_padded_and_scales_folded_in_float32(tmp_path: Path) -> None:
    """rsLoRA, a rank pattern and an alpha pattern give the same updates under one scale."""
    peft = plain.write(
        tmp_path / "a", plain.layered({**plain.ATTENTION, **plain.MLP}), config=RSLORA
    )
    mlx = _convert(peft, tmp_path / "m", "mlx")
    config = json.loads((mlx / "adapter_config.json").read_text())
    assert config["lora_parameters"]["rank"] == 6
    plain.same(plain.deltas(peft), _updates(mlx), 1e-7)


def test_16_bit_factors_stay_so_but_where_a_scale_goes_in(tmp_path: Path) -> None:
    """What is multiplied is rounded once, to float32."""
    modules = plain.layered(plain.ATTENTION)
    folder = plain.write(
        tmp_path / "a", modules, dtype="float16", config={"alpha_pattern": {"v_proj": 3}}
    )
    mlx = _convert(folder, tmp_path / "m", "mlx")
    tensors = load_file(mlx / "adapters.safetensors")
    kinds = {key: str(values.dtype) for key, values in tensors.items()}
    assert {key for key, kind in kinds.items() if kind == "float32"} == {
        key for key in kinds if key.endswith("v_proj.lora_b")
    }
    plain.same(plain.deltas(folder), _updates(mlx), 1e-7)


def test_experts_become_a_switch_layer(tmp_path: Path) -> None:
    """Every expert's delta at its place; an expert without one has zeros."""
    modules = plain.layered({**plain.ATTENTION, **plain.experts()})
    del modules["model.layers.1.mlp.experts.1.up_proj"]
    peft = plain.write(tmp_path / "a", modules)
    mlx = _convert(peft, tmp_path / "m", "mlx")
    found, wanted = _updates(mlx), plain.deltas(peft)
    stack = found["model.layers.1.mlp.switch_mlp.up_proj"]
    assert stack.shape == (plain.EXPERTS, plain.INNER, plain.HIDDEN)
    assert not stack[1].any()
    assert np.array_equal(stack[2], wanted["model.layers.1.mlp.experts.2.up_proj"])
    back = plain.deltas(_convert(mlx, tmp_path / "b", "peft"))
    assert not back.pop("model.layers.1.mlp.experts.1.up_proj").any()
    plain.same(wanted, back)


def test_mixtrals_experts_have_their_own_names(tmp_path: Path) -> None:
    """w1, w2 and w3 are gate, down and up."""
    b, a = drawn(1, 2, 5, 3), drawn(2, 2, 3, 4)
    module = "model.layers.0.block_sparse_moe.switch_mlp.gate_proj"
    folder = _mlx(tmp_path / "m", {f"{module}.lora_a": a, f"{module}.lora_b": b})
    back = plain.deltas(_convert(folder, tmp_path / "b", "peft"))
    assert list(back) == [f"model.layers.0.block_sparse_moe.experts.{n}.w1" for n in (0, 1)]
    again = _convert(tmp_path / "b", tmp_path / "c", "mlx")
    assert np.array_equal(_updates(again)[module], _updates(folder)[module])


def test_older_stacks_of_experts_are_read(tmp_path: Path) -> None:
    """lora_a was (experts * r, in) once."""
    b, a = drawn(1, 2, 5, 3), drawn(2, 2, 3, 4)
    module = "model.layers.0.mlp.switch_mlp.up_proj"
    new = _mlx(tmp_path / "n", {f"{module}.lora_a": a, f"{module}.lora_b": b})
    old = _mlx(tmp_path / "o", {f"{module}.lora_a": a.reshape(6, 4), f"{module}.lora_b": b})
    plain.same(
        plain.deltas(_convert(new, tmp_path / "a", "peft")),
        plain.deltas(_convert(old, tmp_path / "b", "peft")),
    )


def _mlx(folder: Path, tensors: dict[str, Array], **fields: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "num_layers": 4, "model": "someone/base"}
    config |= {"lora_parameters": {"rank": 3, "scale": 10.0, "alpha": 16, "dropout": 0.0}}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    return folder


def _linear(module: str = "model.layers.3.self_attn.q_proj") -> dict[str, Array]:
    return {f"{module}.lora_a": drawn(1, 8, 3), f"{module}.lora_b": drawn(2, 3, 6)}


def test_scale_counts_and_alpha_does_not(tmp_path: Path) -> None:
    """A real adapter has both; mlx-lm takes the scale as it is."""
    folder = _mlx(tmp_path / "m", _linear())
    found = adaptool.inspect(folder)
    assert (found.layout, found.base, found.scaling) == (
        "mlx",
        "someone/base",
        {"min": 10.0, "max": 10.0},
    )
    plain.same(_updates(folder), plain.deltas(_convert(folder, tmp_path / "p", "peft")))


def test_magnitudes_are_doras(tmp_path: Path) -> None:
    """m is the magnitude of each output, there and back."""
    peft = plain.write(tmp_path / "a", plain.layered(plain.ATTENTION), magnitudes=True)
    mlx = _convert(peft, tmp_path / "m", "mlx")
    config = json.loads((mlx / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "dora"
    before = load_file(peft / "adapter_model.safetensors")
    after = load_file(mlx / "adapters.safetensors")
    module = "model.layers.0.self_attn.q_proj"
    assert np.array_equal(after[f"{module}.m"], before[f"{PREFIX}{module}.lora_magnitude_vector"])
    back = _convert(mlx, tmp_path / "b", "peft")
    assert json.loads((back / "adapter_config.json").read_text())["use_dora"] is True
    again = load_file(back / "adapter_model.safetensors")
    assert {key: values.tobytes() for key, values in again.items()} == {
        key: values.tobytes() for key, values in before.items()
    }


def test_a_full_fine_tune_is_whole_tensors(tmp_path: Path) -> None:
    """Without factors every tensor replaces the base's; PEFT loads no LoRA that has none."""
    tensors = {"model.layers.3.mlp.up_proj.weight": drawn(1, 6, 4)}
    folder = _mlx(tmp_path / "m", tensors, fine_tune_type="full")
    with pytest.raises(MismatchError) as caught:
        adaptool.convert(folder, tmp_path / "p", to="peft")
    assert caught.value.code is Code.LAYOUT_CANNOT_HOLD
    back = _convert(folder, tmp_path / "b", "mlx")
    assert load_file(back / "adapters.safetensors").keys() == tensors.keys()


def test_without_a_scale_the_caller_gives_one(tmp_path: Path) -> None:
    """Exit 3, and --scale or --alpha instead."""
    path = tmp_path / "lonely.safetensors"
    save_file(_linear(), path)
    with pytest.raises(InputError) as caught:
        adaptool.convert(path, tmp_path / "p", to="peft")
    assert caught.value.code is Code.CONFIG_MISSING
    one = plain.deltas(_convert(path, tmp_path / "a", "peft", scale=4.0))
    other = plain.deltas(_convert(path, tmp_path / "b", "peft", alpha=12.0))
    plain.same(one, other)


@pytest.mark.parametrize("scale", ["20", True, float("nan"), [1]])
def test_a_scale_that_is_no_number_is_refused(tmp_path: Path, scale: object) -> None:
    """The field is named."""
    folder = _mlx(tmp_path / "m", _linear(), lora_parameters={"rank": 3, "scale": scale})
    with pytest.raises(InputError):
        adaptool.inspect(folder)


def test_half_a_pair_and_foreign_keys_are_named(tmp_path: Path) -> None:
    """A lone lora_a is an error; a key of another kind needs --allow-drop."""
    tensors = _linear()
    half = _mlx(tmp_path / "h", {name: tensors[name] for name in tensors if name.endswith("a")})
    with pytest.raises(InputError) as caught:
        adaptool.inspect(half)
    assert caught.value.code is Code.FACTOR_MISSING
    foreign = _mlx(tmp_path / "f", {**tensors, "step": drawn(1, 2)})
    with pytest.raises(InputError, match="step"):
        adaptool.convert(foreign, tmp_path / "p", to="peft")
    adaptool.convert(foreign, tmp_path / "p", to="peft", allow_drop=["step"])


def test_dora_over_an_embedding_is_refused_by_name(tmp_path: Path) -> None:
    """Its norm runs over the rows, which no other library's does."""
    module = "model.embed_tokens"
    folder = _mlx(tmp_path / "m", {**_linear(module), f"{module}.m": drawn(3, 8)})
    with pytest.raises(MismatchError) as caught:
        adaptool.inspect(folder)
    assert caught.value.tensor == f"{module}.m"


def test_what_mlx_cannot_hold_is_said_before_writing(tmp_path: Path) -> None:
    """Whole tensors beside factors: exit 4, or allowed to be lost."""
    peft = plain.write(tmp_path / "a", plain.layered(plain.ATTENTION))
    weights = peft / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, f"{PREFIX}lm_head.weight": drawn(9, 4, 4)}, weights)
    config = json.loads((peft / "adapter_config.json").read_text())
    (peft / "adapter_config.json").write_text(
        json.dumps({**config, "modules_to_save": ["lm_head"]})
    )
    with pytest.raises(MismatchError) as caught:
        adaptool.convert(peft, tmp_path / "m", to="mlx")
    assert caught.value.code is Code.LAYOUT_CANNOT_HOLD
    assert not (tmp_path / "m").exists()
    adaptool.convert(peft, tmp_path / "m", to="mlx", allow_drop=["*lm_head*"])
    plain.same(plain.deltas(peft), _updates(tmp_path / "m"))


def test_the_keys_name_the_paths_inside_a_layer(tmp_path: Path) -> None:
    """mlx-lm makes the modules that the config names, in every layer."""
    peft = plain.write(tmp_path / "a", plain.layered(plain.ATTENTION), embedding=True)
    mlx = _convert(peft, tmp_path / "m", "mlx")
    config = json.loads((mlx / "adapter_config.json").read_text())
    assert config["lora_parameters"]["keys"] == [
        "model.embed_tokens",
        *sorted(plain.ATTENTION),
    ]
    assert config["num_layers"] == -1


def test_a_single_file_carries_its_config(tmp_path: Path) -> None:
    """Read again without the directory."""
    peft = plain.write(tmp_path / "a", plain.layered(plain.ATTENTION))
    single = _convert(peft, tmp_path / "m.safetensors", "mlx")
    plain.same(plain.deltas(peft), plain.deltas(_convert(single, tmp_path / "b", "peft")))
