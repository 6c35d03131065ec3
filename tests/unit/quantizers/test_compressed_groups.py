"""Which schemes a compressed-tensors config has, and whole checkpoints as the library writes them.

The checkpoints are quantized by compressed-tensors and loaded by transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    apply_quantization_config,
    preset_name_to_scheme,
)
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

from adaptool.errors import InputError
from adaptool.model.quantizer import Packed
from adaptool.quantizers import compressed_float, compressed_mxfp8, compressed_pack, quantizers
from adaptool.store.checkpoint import open_checkpoint
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}


def _config(*groups: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    named = {f"group_{place}": group for place, group in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "config_groups": named, **more}


def _found(config: Mapping[str, Any]) -> set[str]:
    return {name for name, each in quantizers().items() if each.settings(config) is not None}


@pytest.mark.parametrize(
    ("group", "layout", "scheme"),
    [
        ({"weights": INT4}, "pack-quantized", "compressed_pack"),
        ({"weights": INT4, "format": "pack-quantized"}, "mixed-precision", "compressed_pack"),
        ({"weights": INT4}, "mixed-precision", "compressed_pack"),
        ({"weights": INT4 | {"strategy": None}}, "pack-quantized", "compressed_pack"),
        ({"weights": FP8}, "naive-quantized", "compressed_float"),
        ({"weights": FP8}, None, "compressed_float"),
        ({"weights": FP8 | {"type": "int"}}, "int-quantized", "compressed_int"),
        (
            {"weights": FP8 | {"type": "int"}, "input_activations": {"num_bits": 8}},
            "mixed-precision",
            "compressed_int",
        ),
        ({"weights": FP8 | {"num_bits": 4, "group_size": 16}}, None, "compressed_nvfp4"),
        ({"weights": FP8 | {"num_bits": 4, "group_size": 32}}, None, "compressed_mxfp4"),
    ],
)
def test_a_group_has_one_scheme(group: dict[str, Any], layout: str | None, scheme: str) -> None:
    """By the group's format, the model's, or what the library makes of such weights."""
    assert _found(_config(group, format=layout)) == {scheme}


@pytest.mark.parametrize(
    "config",
    [
        _config({"weights": INT4}, format="marlin-24"),
        _config({"weights": INT4}, format="dense"),
        _config({"weights": INT4}, {"weights": FP8, "format": "unheard-of"}),
        _config({"weights": INT4 | {"num_bits": 16}}, format="pack-quantized"),
        _config({"weights": INT4 | {"group_size": 0}}, format="pack-quantized"),
        _config({"weights": INT4 | {"strategy": "token"}}, format="pack-quantized"),
        _config({"weights": INT4 | {"strategy": "block"}}, format="pack-quantized"),
        _config({"weights": "int4"}, format="pack-quantized"),
        _config(["Linear"], format="pack-quantized"),  # type: ignore[arg-type]
        _config({"weights": INT4}, format="pack-quantized", transform_config={"config_groups": 1}),
        _config({"weights": INT4}, format="pack-quantized", sparsity_config={"format": "2:4"}),
        _config({"input_activations": {}}, format="pack-quantized"),
        {"quant_method": "compressed-tensors", "config_groups": []},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "gptq", "config_groups": {"a": {"weights": INT4}}},
    ],
)
def test_a_config_that_is_not_read_has_no_scheme(config: Mapping[str, Any]) -> None:
    """Half a model is never read: its other half would pass for plain weights."""
    assert not {name for name in _found(config) if name.startswith("compressed")}


def test_empty_transforms_and_sparsity_are_none() -> None:
    """What the library writes where there are none."""
    nothing = {"transform_config": {"config_groups": {}}, "sparsity_config": {}}
    config = _config({"weights": INT4}, format="pack-quantized", **nothing)
    assert _found(config) == {"compressed_pack"}


def test_mixed_modules_each_come_from_their_own_scheme(store: Store) -> None:
    """FP8 attention, MXFP8 head and 4-bit experts in one model, each read once."""
    mx = FP8 | {"strategy": "group", "group_size": 32}
    config = _config(
        {"weights": INT4, "format": "pack-quantized"},
        {"weights": FP8, "format": "float-quantized"},
        {"weights": mx, "format": "mxfp8-quantized"},
        format="mixed-precision",
    )
    codes = torch.zeros(8, 64).to(torch.float8_e4m3fn)
    tensors = store(
        {
            "attn.weight": codes,
            "attn.weight_scale": torch.ones(8, 1),
            "head.weight": codes,
            "head.weight_scale": torch.zeros(8, 2, dtype=torch.uint8),
            "expert.weight_packed": torch.zeros(8, 8, dtype=torch.int32),
            "expert.weight_scale": torch.ones(8, 2),
            "expert.weight_shape": torch.tensor([8, 64]),
            "norm.weight": torch.ones(8),
        }
    )
    names = []
    for module in (compressed_pack, compressed_float, compressed_mxfp8):
        settings = module.settings(config)
        assert settings is not None
        names.append([packed.name for packed in module.packed(tensors, settings)])
    assert names == [["expert.weight"], ["attn.weight"], ["head.weight"]]


def test_a_packed_weight_that_also_lies_there_plain_is_refused(store: Store) -> None:
    """Of two weights of one name, none is guessed."""
    settings = compressed_pack.settings(_config({"weights": INT4}, format="pack-quantized"))
    assert settings is not None
    tensors = store(
        {
            "x.weight": torch.zeros(8, 64),
            "x.weight_packed": torch.zeros(8, 8, dtype=torch.int32),
            "x.weight_scale": torch.ones(8, 2),
            "x.weight_shape": torch.tensor([8, 64]),
        }
    )
    with pytest.raises(InputError, match="twice"):
        list(compressed_pack.packed(tensors, settings))


PRESETS = {
    "W4A16": "compressed_pack",
    "W4A16_ASYM": "compressed_pack",
    "W8A8": "compressed_int",
    "FP8_DYNAMIC": "compressed_float",
    "FP8_BLOCK": "compressed_float",
    "NVFP4A16": "compressed_nvfp4",
    "MXFP4A16": "compressed_mxfp4",
    "MXFP8A16": "compressed_mxfp8",
}


@pytest.fixture(scope="module")
def tiny() -> LlamaForCausalLM:
    """A model with groups of 128 that divide and blocks of 128 that do not."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        dtype=torch.bfloat16,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).bfloat16()


def _quantize(model: torch.nn.Module, preset: str) -> None:
    """Random scales and zero points, then the library's own packing."""
    scheme = preset_name_to_scheme(preset, ["Linear"])
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    apply_quantization_config(model, config, show_progress=False)
    for name, parameter in model.named_parameters():
        if name.endswith("weight_scale"):
            parameter.data.uniform_(0.01, 0.02)
        elif name.endswith("weight_global_scale"):
            parameter.data.fill_(37.5)
        elif name.endswith("weight_zero_point") and parameter.dtype == torch.int8:
            parameter.data.random_(0, 5)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("preset", list(PRESETS))
def test_checkpoints_decode_to_what_transformers_loads(
    tiny: LlamaForCausalLM, tmp_path: Path, decode: Decode, preset: str
) -> None:
    """Every weight of a saved model equals the parameter that transformers dequantizes it to."""
    model = LlamaForCausalLM(tiny.config).bfloat16()
    model.load_state_dict(tiny.state_dict())
    _quantize(model, preset)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(str(tmp_path))
    how = CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how)
    state = loaded.state_dict()
    with open_checkpoint(tmp_path) as base:
        found = list(_every(base.config or {}, base.tensors))
        assert {packed.scheme for packed in found} == {PRESETS[preset]}
        assert len(found) == 7
        for packed in found:
            weight = decode(packed).to(torch.bfloat16)
            assert torch.equal(weight, state[packed.name]), packed.name


def _every(config: Mapping[str, Any], tensors: Mapping[str, TensorRef]) -> Iterator[Packed]:
    for quantizer in quantizers().values():
        settings = quantizer.settings({**config, **config["quantization_config"]})
        if settings is not None:
            yield from quantizer.packed(tensors, settings)
