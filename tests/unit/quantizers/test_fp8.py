"""FP8 against transformers' dequantizer and, for blocks cut short, compressed-tensors', bitwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.entrypoints.convert import FP8BlockDequantizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, LlamaConfig, LlamaForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.quantizers.quantizers_utils import should_convert_module

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed
from adaptool.quantizers import fp8
from adaptool.store.checkpoint import open_checkpoint
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]

CONFIG = {"quant_method": "fp8", "weight_block_size": [128, 128], "dtype": "bfloat16"}
HARD = [0.0, -0.0, 1e-40, -3e38, float("inf"), float("nan"), 2.0**-126]


def _same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal in dtype, shape and bits; where one is not a number, so is the other."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert torch.equal(one.isnan(), other.isnan())
    bits = {2: torch.int16, 4: torch.int32}[one.element_size()]
    numbers = ~one.isnan()
    left, right = one.contiguous().view(bits), other.contiguous().view(bits)
    assert torch.equal(left[numbers], right[numbers])


def _codes(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    """Every byte there is, also those that are not numbers."""
    torch.manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8).view(dtype)


def _packed(store: Store, stored: Tensors, **config: Any) -> Packed:
    settings = fp8.settings(CONFIG | config)
    assert settings is not None
    (packed,) = fp8.packed(store(stored), settings)
    assert {ref.name for ref in packed.roles.values()} == set(stored)
    return packed


def _transformers(
    codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    return Fp8Dequantize(None)._dequantize_one(codes, scales, dtype)  # noqa: SLF001 - the oracle


@pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_whole_blocks_equal_transformers(
    store: Store, decode: Decode, dtype: str, scale: torch.dtype
) -> None:
    """All codes, in the dtype that the model's config says."""
    codes, scales = _codes(256, 384), torch.randn(2, 3).to(scale)
    stored = {"x.weight": codes, "x.weight_scale_inv": scales}
    packed = _packed(store, stored, dtype=dtype)
    assert (packed.name, packed.shape) == ("x.weight", (256, 384))
    _same(decode(packed), _transformers(codes, scales, getattr(torch, dtype)))


@pytest.mark.parametrize("shape", [(300, 260), (128, 1), (1, 129), (127, 127), (129, 128)])
@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
def test_blocks_cut_short_equal_compressed_tensors(
    store: Store, decode: Decode, shape: tuple[int, int], block: tuple[int, int]
) -> None:
    """The last blocks end at the weight's edge; transformers refuses those."""
    codes = _codes(*shape)
    grid = [-(-size // step) for size, step in zip(shape, block, strict=True)]
    stored = {"x.weight": codes, "x.weight_scale_inv": torch.randn(grid)}
    packed = _packed(store, stored, weight_block_size=list(block))
    library = FP8BlockDequantizer(weight_block_size=block).process(dict(stored))
    _same(decode(packed), library["x.weight"])


def test_the_config_says_the_blocks_where_even_ones_would_fit_too(
    store: Store, decode: Decode
) -> None:
    """300 rows in 3 blocks are 128 + 128 + 44 as kernels have it, not 3 of 100."""
    stored = {"x.weight": _codes(300, 128), "x.weight_scale_inv": torch.randn(3, 1)}
    library = FP8BlockDequantizer().process(dict(stored))
    _same(decode(_packed(store, stored)), library["x.weight"])


@pytest.mark.parametrize("kind", [torch.float8_e8m0fnu, torch.uint8])
def test_every_exponent_equals_transformers(
    store: Store, decode: Decode, kind: torch.dtype
) -> None:
    """Scales that are exponents, all 256 of them."""
    codes = _codes(256, 128)
    scales = torch.arange(256, dtype=torch.uint8).view(kind).reshape(256, 1)
    stored = {"x.weight": codes, "x.weight_scale_inv": scales}
    packed = _packed(store, stored, weight_block_size=[1, 128])
    _same(decode(packed), _transformers(codes, scales))


@pytest.mark.parametrize("value", HARD)
def test_scales_that_are_no_ordinary_numbers(store: Store, decode: Decode, value: float) -> None:
    """Zero, subnormal, huge, infinite and not-a-number scales, times every code."""
    codes, scales = _codes(128, 128), torch.tensor([[value]])
    packed = _packed(store, {"x.weight": codes, "x.weight_scale_inv": scales})
    _same(decode(packed), _transformers(codes, scales))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (130,), (130, 1)])
@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv", "scale", "qscale_weight"])
def test_scales_of_the_tensor_and_of_outputs_equal_transformers(
    store: Store, decode: Decode, shape: tuple[int, ...], name: str
) -> None:
    """Under every name that checkpoints give them."""
    codes, scales = _codes(130, 200), torch.rand(shape)
    stored = {"x.weight": codes, f"x.{name}": scales, "x.input_scale_inv": torch.ones(())}
    packed = _packed(store, stored, weight_block_size=None)
    _same(decode(packed), _transformers(codes, scales.reshape(-1, 1)))


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (3, 256, 1), (3, 2, 2), ()])
def test_stacked_experts_equal_transformers_one_by_one(
    store: Store, decode: Decode, shape: tuple[int, ...]
) -> None:
    """One parameter of several matrices, each with scales of its own."""
    codes, scales = _codes(3, 256, 256), torch.rand(shape)
    packed = _packed(store, {"experts.down_proj": codes, "experts.down_proj_scale_inv": scales})
    assert (packed.name, packed.shape) == ("experts.down_proj", (3, 256, 256))
    each = scales.expand(3) if not shape else scales
    found = decode(packed)
    for expert in range(3):
        grid = each[expert].reshape(1, 1) if each[expert].dim() == 0 else each[expert]
        _same(found[expert * 256 :][:256], _transformers(codes[expert], grid))
    _same(decode(packed, 200, 600), found[200:600])


def test_stacked_experts_with_blocks_cut_short(store: Store, decode: Decode) -> None:
    """The grid begins anew with every expert."""
    codes, scales = _codes(3, 150, 128), torch.rand(3, 2, 1)
    packed = _packed(store, {"experts.up": codes, "experts.up_scale_inv": scales})
    each = [
        FP8BlockDequantizer().process({"x.weight": one, "x.weight_scale_inv": scale})["x.weight"]
        for one, scale in zip(codes, scales, strict=True)
    ]
    _same(decode(packed), torch.cat(each))
    _same(decode(packed, 140, 310), torch.cat(each)[140:310])


@pytest.mark.parametrize("kind", [torch.float8_e8m0fnu, torch.float32])
def test_experts_of_4_bit_floats_equal_transformers(
    store: Store, decode: Decode, kind: torch.dtype
) -> None:
    """DeepSeek V4: two codes a byte under exponents, in a model of FP8 otherwise."""
    codes = _codes(64, 128, dtype=torch.int8)
    scales = torch.randint(100, 150, (64, 8), dtype=torch.uint8).view(torch.float8_e8m0fnu)
    stored = {"e.w1.weight": codes, "e.w1.scale": scales.to(kind)}
    packed = _packed(store, stored, expert_dtype="fp4")
    assert packed.shape == (64, 256)
    _same(decode(packed), _transformers(codes, scales.to(kind)))


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (127, 129), (256, 300), (9, 9), (0, 300)])
@pytest.mark.parametrize("grid", [(3, 3), (300, 1), ()])
def test_rows_equal_the_slice_of_the_whole(
    store: Store, decode: Decode, grid: tuple[int, ...], start: int, stop: int
) -> None:
    """Rows that begin in the middle of a block are the same rows."""
    stored = {"x.weight": _codes(300, 260), "x.weight_scale_inv": torch.rand(grid)}
    packed = _packed(store, stored)
    _same(decode(packed, start, stop), decode(packed)[start:stop])


def test_fbgemm_is_float32_by_outputs_in_bfloat16(store: Store, decode: Decode) -> None:
    """Against the formula: the library runs on GPUs only and has no dequantizer."""
    codes, scales = _codes(64, 96), torch.rand(64, 1)
    stored = {"x.weight": codes, "x.weight_scale": scales, "x.input_scale_ub": torch.ones(1)}
    packed = _packed(store, stored, quant_method="fbgemm_fp8", dtype="float16")
    _same(decode(packed), (codes.float() * scales).bfloat16())


def test_e5m2_equals_transformers(store: Store, decode: Decode) -> None:
    """The other 8-bit float, infinities included."""
    codes, scales = _codes(128, 128, dtype=torch.float8_e5m2), torch.rand(1, 1)
    packed = _packed(store, {"x.weight": codes, "x.weight_scale_inv": scales})
    _same(decode(packed), _transformers(codes, scales))


def test_plain_modules_are_left_alone(store: Store) -> None:
    """Of a mixed checkpoint only the FP8 weights come; scales of other things are not theirs."""
    plain = {"lm_head.weight": torch.zeros(4, 4), "norm.weight": torch.ones(4)}
    plain |= {"attn.k_scale": torch.ones(1), "clip.scale": torch.ones(1)}
    stored = {"x.weight": _codes(4, 4), "x.weight_scale_inv": torch.ones(1, 1)}
    settings = fp8.settings(CONFIG)
    assert settings is not None
    (packed,) = fp8.packed(store({**plain, **stored}), settings)
    assert {ref.name for ref in packed.roles.values()} == set(stored)


@pytest.mark.parametrize(
    "stored",
    [
        {"x.weight": _codes(4, 4)},
        {"x.weight_scale_inv": torch.ones(1, 1)},
        {"x.weight": torch.zeros(4, 4), "x.weight_scale_inv": torch.ones(1, 1)},
        {"experts.up_scale_inv": torch.ones(1, 1)},
        {"x.weight": _codes(4, 4), "x.weight_scale": torch.ones(1), "x.scale": torch.ones(1)},
        {"x.weight": _codes(4), "x.weight_scale_inv": torch.ones(1, 1)},
        {"x.weight": _codes(4, 4), "x.weight_scale_inv": torch.ones(1, dtype=torch.int32)},
    ],
)
def test_parts_that_contradict_each_other_are_refused(store: Store, stored: Tensors) -> None:
    """Neither a code without a scale nor a scale without a code passes for a plain tensor."""
    with pytest.raises(InputError, match=r"x\.weight|experts\.up|shape|I32"):
        _packed(store, stored)


@pytest.mark.parametrize("grid", [(3, 2), (2, 2), (2, 4), (6, 3)])
def test_a_grid_that_is_not_the_configs_is_refused(store: Store, grid: tuple[int, int]) -> None:
    """The message has the shape there is and the one that the blocks ask."""
    stored = {"x.weight": _codes(256, 384), "x.weight_scale_inv": torch.ones(grid)}
    with pytest.raises(InputError, match=r"\[2, 3\]") as caught:
        _packed(store, stored)
    assert caught.value.code is Code.SHAPE_MISMATCH


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({}, {"modules_to_not_convert": ["lm_head", "x.mlp"]}),
        ({"modules_to_not_convert": ["a"]}, {"modules_to_not_convert": ["a", "x.mlp"]}),
        ({"ignored_layers": ["a"]}, {"ignored_layers": ["a", "x.mlp"]}),
        (
            {"ignored_layers": ["a"], "modules_to_not_convert": ["b"]},
            {"ignored_layers": ["a", "x.mlp"], "modules_to_not_convert": ["b", "x.mlp"]},
        ),
    ],
)
def test_skipping_keeps_every_list_that_a_loader_reads(
    lists: dict[str, Any], expected: dict[str, Any]
) -> None:
    """What was listed stays listed, and transformers finds the new module in its list."""
    changed = fp8.skipping({"quant_method": "fp8", **lists}, ["x.mlp"])
    assert changed == {"quant_method": "fp8", **expected}
    read = FineGrainedFP8Config(**changed).modules_to_not_convert
    assert not should_convert_module("x.mlp", read)


def test_skipping_an_expert_skips_the_stack_that_transformers_makes() -> None:
    """transformers asks its list for `experts`, whatever lies in the file."""
    changed = fp8.skipping(CONFIG, ["model.layers.1.mlp.experts.0.up_proj"])
    listed = changed["modules_to_not_convert"]
    assert not should_convert_module("model.layers.1.mlp.experts", listed)
    assert should_convert_module("model.layers.11.mlp.experts", listed)


@pytest.mark.parametrize("block", [[128], "128", [0, 128], [128, None]])
def test_blocks_that_are_none_are_not_read(block: object) -> None:
    """A config with another idea of a block is not this scheme's."""
    assert fp8.settings(CONFIG | {"weight_block_size": block}) is None


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A model of two layers in FP8 with blocks, as transformers reads one."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if "_proj" in name]:
        rows, columns = tensors[name].shape
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.rand(rows // 32, columns // 32)
    save_file(tensors, file, metadata={"format": "pt"})
    method = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    _write_config(tmp_path, method)
    return tmp_path


def _write_config(folder: Path, quantization: Mapping[str, Any]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": quantization}))


def test_a_checkpoint_decodes_to_what_transformers_loads(checkpoint: Path, decode: Decode) -> None:
    """Every weight equals the parameter that transformers dequantizes it to."""
    state = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    with open_checkpoint(checkpoint) as base:
        config = dict(base.config or {})
        settings = fp8.settings({**config, **config["quantization_config"]})
        assert settings is not None
        found = list(fp8.packed(base.tensors, settings))
        assert len(found) == 14
        for packed in found:
            _same(decode(packed), state[packed.name])
