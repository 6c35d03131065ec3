"""gpt-oss' MXFP4 against transformers' own dequantizer, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.quantizers.quantizers_utils import should_convert_module

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed
from adaptool.quantizers import mxfp4
from adaptool.store.checkpoint import open_checkpoint
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]

NAME = "model.layers.0.mlp.experts.gate_up_proj"
CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"], "dtype": "bfloat16"}


def _same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal in dtype, shape and bits; where one is not a number, so is the other."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert torch.equal(one.isnan(), other.isnan())
    bits = {2: torch.int16, 4: torch.int32}[one.element_size()]
    numbers = ~one.isnan()
    left, right = one.contiguous().view(bits), other.contiguous().view(bits)
    assert torch.equal(left[numbers], right[numbers])


def _stored(experts: int = 3, rows: int = 96, groups: int = 4) -> Tensors:
    """Every exponent there is, under random codes."""
    torch.manual_seed(0)
    shape = (experts, rows, groups)
    scales = torch.arange(experts * rows * groups).to(torch.uint8).reshape(shape)
    blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
    return {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}


def _packed(store: Store, stored: Tensors, config: Mapping[str, object] = CONFIG) -> Packed:
    settings = mxfp4.settings(config)
    assert settings is not None
    (packed,) = mxfp4.packed(store(stored), settings)
    assert {ref.name for ref in packed.roles.values()} == set(stored)
    return packed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_exponent_equals_transformers(store: Store, decode: Decode, dtype: str) -> None:
    """The transposed parameter as transformers loads it, in the dtype of the model."""
    stored = _stored()
    packed = _packed(store, stored, CONFIG | {"dtype": dtype})
    assert (packed.name, packed.shape, packed.granule) == (NAME, (3, 128, 96), 128)
    blocks, scales = stored[f"{NAME}_blocks"], stored[f"{NAME}_scales"]
    expected = convert_moe_packed_tensors(blocks, scales, dtype=getattr(torch, dtype))
    _same(decode(packed).reshape(packed.shape), expected)


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 128), (128, 256), (128, 384), (1, 2), (100, 300), (128, 128), (383, 384)],
)
def test_rows_equal_the_slice_of_the_whole(
    store: Store, decode: Decode, start: int, stop: int
) -> None:
    """Experts one by one, several, and rows within them."""
    packed = _packed(store, _stored())
    _same(decode(packed, start, stop), decode(packed)[start:stop])


def test_biases_and_routers_are_left_alone(store: Store) -> None:
    """Of a layer's tensors only blocks and scales are packed."""
    stored = _stored()
    others = {f"{NAME}_bias": torch.zeros(3, 96), "model.layers.0.mlp.router.weight": torch.ones(3)}
    settings = mxfp4.settings(CONFIG)
    assert settings is not None
    (packed,) = mxfp4.packed(store({**others, **stored}), settings)
    assert {ref.name for ref in packed.roles.values()} == set(stored)


@pytest.mark.parametrize("part", ["_blocks", "_scales"])
def test_a_missing_part_is_refused(store: Store, part: str) -> None:
    """Blocks without scales, and scales without blocks."""
    stored = _stored()
    del stored[NAME + part]
    with pytest.raises(InputError, match=NAME + part):
        _packed(store, stored)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("_scales", torch.zeros(3, 96, 5, dtype=torch.uint8)),
        ("_blocks", torch.zeros(3, 96, 4, 8, dtype=torch.uint8)),
        ("_blocks", torch.zeros(3, 96, 64, dtype=torch.uint8)),
    ],
)
def test_a_wrong_shape_is_refused(store: Store, part: str, wrong: torch.Tensor) -> None:
    """With the shape there is and the one it should have."""
    with pytest.raises(InputError, match=r"\[3, 96") as caught:
        _packed(store, _stored() | {NAME + part: wrong})
    assert caught.value.code is Code.SHAPE_MISMATCH


def test_skipping_names_the_module_that_transformers_asks_for() -> None:
    """transformers asks for `experts`, not for its parameters, and then leaves it plain."""
    changed = mxfp4.skipping(CONFIG, [NAME])
    listed = changed["modules_to_not_convert"]
    assert not should_convert_module("model.layers.0.mlp.experts", listed)
    assert should_convert_module("model.layers.1.mlp.experts", listed)
    assert not should_convert_module("lm_head", listed)
    assert mxfp4.skipping({"quant_method": "mxfp4"}, [])["modules_to_not_convert"] == ["lm_head"]


def test_other_methods_have_no_settings() -> None:
    """Only `mxfp4` is this scheme's."""
    assert mxfp4.settings({"quant_method": "fp8"}) is None
    assert mxfp4.settings({"quant_method": "mxfp4"}) == {"dtype": "BF16"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small gpt-oss with its experts in MXFP4, as it is published."""
    config = GptOssConfig(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=3,
        num_experts_per_tok=1,
        vocab_size=40,
    )
    GptOssForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    stacked = [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]
    for name in stacked:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(110, 130, shape, dtype=torch.uint8)
    assert len(stacked) == 4
    save_file(tensors, file, metadata={"format": "pt"})
    written = json.loads((tmp_path / "config.json").read_text())
    written["quantization_config"] = CONFIG
    (tmp_path / "config.json").write_text(json.dumps(written))
    return tmp_path


def test_a_checkpoint_decodes_to_what_transformers_loads(checkpoint: Path, decode: Decode) -> None:
    """Every stacked parameter equals the one that transformers dequantizes it to."""
    state = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    with open_checkpoint(checkpoint) as base:
        config = dict(base.config or {})
        settings = mxfp4.settings({**config, **config["quantization_config"]})
        assert settings is not None
        found = list(mxfp4.packed(base.tensors, settings))
        assert len(found) == 4
        for packed in found:
            _same(decode(packed).reshape(packed.shape), state[packed.name])
