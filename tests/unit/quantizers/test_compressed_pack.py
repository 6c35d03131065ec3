"""compressed-tensors pack-quantized against compressed-tensors itself, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed
from adaptool.quantizers import compressed_pack
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]

BITS = [1, 2, 3, 4, 5, 6, 7, 8]
STRATEGIES: dict[str, dict[str, Any]] = {
    "group": {"strategy": "group", "group_size": 32},
    "channel": {"strategy": "channel"},
    "tensor": {"strategy": "tensor"},
}
HARD = [0.0, -0.0, 1e-40, -3e38, float("inf"), float("nan"), 2.0**-126]


def _same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal in dtype, shape and bits; where one is not a number, so is the other."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert torch.equal(one.isnan(), other.isnan())
    bits = {2: torch.int16, 4: torch.int32}[one.element_size()]
    numbers = ~one.isnan()
    left, right = one.contiguous().view(bits), other.contiguous().view(bits)
    assert torch.equal(left[numbers], right[numbers])


def _config(**weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int"} | weights}
    method = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return {**method, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


def _scheme(**weights: Any) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))


def _library(stored: Tensors, **weights: Any) -> torch.Tensor:
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    return compressor.decompress(dict(stored), _scheme(**weights))["weight"]


def _scale_shape(rows: int, columns: int, weights: Mapping[str, Any]) -> tuple[int, ...]:
    if weights["strategy"] == "tensor":
        return (1,)
    return (rows, columns // weights.get("group_size", columns))


def _stored(
    rows: int, columns: int, *, dtype: torch.dtype = torch.bfloat16, **weights: Any
) -> Tensors:
    """Every bit of codes and zero points random, also those after the last code of a row."""
    torch.manual_seed(rows + columns)
    bits, shape = weights["num_bits"], _scale_shape(rows, columns, weights)
    stored = {
        "weight_packed": _words(rows, -(-columns * bits // 32)),
        "weight_scale": torch.randn(shape).mul(0.01).to(dtype),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not weights.get("symmetric", True):
        single = weights["strategy"] == "tensor"
        half = 2 ** (bits - 1)
        one = torch.randint(-half, half, (1,), dtype=torch.int8)
        zeros = one if single else _words(-(-rows * bits // 32), shape[1])
        stored["weight_zero_point"] = zeros
    return stored


def _words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def _packed(store: Store, stored: Tensors, **weights: Any) -> Packed:
    settings = compressed_pack.settings(_config(**weights))
    assert settings is not None
    tensors = store({f"x.{name}": tensor for name, tensor in stored.items()})
    (packed,) = compressed_pack.packed(tensors, settings)
    assert {ref.name for ref in packed.roles.values()} == set(tensors)
    return packed


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("bits", BITS)
def test_every_width_equals_the_library(
    store: Store, decode: Decode, bits: int, strategy: str, symmetric: bool
) -> None:
    """Codes of 1 to 8 bits, in rows that end within a word, with and without zero points."""
    columns = 96 if strategy == "group" else 77
    how = {"num_bits": bits, "symmetric": symmetric, **STRATEGIES[strategy]}
    stored = _stored(37, columns, **how)
    packed = _packed(store, stored, **how)
    assert (packed.name, packed.shape) == ("x.weight", (37, columns))
    _same(decode(packed), _library(stored, **how))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_arithmetic_is_in_the_dtype_of_the_scales(
    store: Store, decode: Decode, dtype: torch.dtype, symmetric: bool
) -> None:
    """The product is rounded where the library rounds it, and the weight has that dtype."""
    how = {"num_bits": 4, "symmetric": symmetric, **STRATEGIES["group"]}
    stored = _stored(16, 128, dtype=dtype, **how)
    packed = _packed(store, stored, **how)
    assert packed.dtype.torch == str(dtype).removeprefix("torch.")
    _same(decode(packed), _library(stored, **how))


def test_scales_that_are_no_ordinary_numbers(store: Store, decode: Decode) -> None:
    """Zero, subnormal, infinite and not-a-number scales give what they give in the library."""
    how = {"num_bits": 4, "symmetric": False, **STRATEGIES["group"]}
    # The library cannot read zero points of 8 outputs or fewer, hence twice.
    stored = _stored(2 * len(HARD), 64, **how)
    stored["weight_scale"] = torch.tensor(HARD, dtype=torch.bfloat16)[:, None].repeat(2, 2)
    _same(decode(_packed(store, stored, **how)), _library(stored, **how))


@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_the_library_packs_is_read_back(
    store: Store, decode: Decode, strategy: str, symmetric: bool
) -> None:
    """The library's own file, int32 shape as written, decodes to what it decodes it to."""
    how = {"num_bits": 4, "symmetric": symmetric, **STRATEGIES[strategy]}
    weight = torch.randn(24, 64, dtype=torch.bfloat16)
    shape = _scale_shape(24, 64, how)
    plain = {"weight": weight, "weight_scale": torch.rand(shape).add(0.1).bfloat16()}
    if not symmetric:
        plain["weight_zero_point"] = torch.randint(-8, 8, shape, dtype=torch.int8)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    stored = compressor.compress(plain, _scheme(**how))
    _same(decode(_packed(store, stored, **how)), _library(stored, **how))


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 9), (31, 33), (36, 37), (5, 5), (0, 37)])
@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rows_equal_the_slice_of_the_whole(
    store: Store, decode: Decode, *, bits: int, strategy: str, start: int, stop: int
) -> None:
    """Rows whose zero points begin in the middle of a word are the same rows."""
    how = {"num_bits": bits, "symmetric": False, **STRATEGIES[strategy]}
    packed = _packed(store, _stored(37, 64, **how), **how)
    _same(decode(packed, start, stop), decode(packed)[start:stop])


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_by_index_follow_the_description(
    store: Store, decode: Decode, symmetric: bool
) -> None:
    """Against the format's formula: no library of today reads act order."""
    how = {"num_bits": 4, "symmetric": symmetric, **STRATEGIES["group"]}
    stored = _stored(8, 128, **how)
    stored["weight_g_idx"] = torch.arange(4, dtype=torch.int32).repeat(32)[torch.randperm(128)]
    index = stored["weight_g_idx"].long()
    words = stored["weight_packed"].long()[:, :, None] >> torch.arange(0, 32, 4) & 15
    codes = words.reshape(8, 128) - 8
    if not symmetric:
        zeros = stored["weight_zero_point"].long()[:, None] >> torch.arange(0, 32, 4)[:, None] & 15
        codes = codes - (zeros.reshape(8, 4)[:, index] - 8)
    expected = codes.bfloat16() * stored["weight_scale"][:, index]
    packed = _packed(store, stored, **how)
    _same(decode(packed), expected)
    _same(decode(packed, 3, 5), expected[3:5])


def test_an_index_of_minus_one_means_inputs_in_order(store: Store, decode: Decode) -> None:
    """What older files without act order hold changes nothing."""
    how = {"num_bits": 4, **STRATEGIES["group"]}
    stored = _stored(8, 64, **how)
    expected = _library(stored, **how)
    stored["weight_g_idx"] = torch.full((64,), -1, dtype=torch.int32)
    _same(decode(_packed(store, stored, **how)), expected)


@pytest.mark.parametrize("index", [[0] * 65 + [1] * 63, [0] * 64 + [2] * 64])
def test_an_index_that_fits_no_grouping_is_refused(
    store: Store, decode: Decode, index: list[int]
) -> None:
    """Groups of unequal size, or that do not exist: the tensor and the numbers are named."""
    how = {"num_bits": 4, "strategy": "group", "group_size": 64}
    stored = _stored(8, 128, **how)
    stored["weight_g_idx"] = torch.tensor(index, dtype=torch.int32)
    packed = _packed(store, stored, **how)
    with pytest.raises(InputError) as caught:
        decode(packed)
    assert caught.value.tensor == "x.weight_g_idx"


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_shape"])
def test_a_missing_part_is_refused(store: Store, part: str) -> None:
    """The message names the part that is not there or the one that is left alone."""
    how = {"num_bits": 4, **STRATEGIES["group"]}
    stored = _stored(8, 64, **how)
    del stored[part]
    with pytest.raises(InputError, match=r"x\.weight"):
        _packed(store, stored, **how)


@pytest.mark.parametrize(
    ("part", "shape"),
    [("weight_packed", (8, 7)), ("weight_scale", (8, 3)), ("weight_zero_point", (2, 2))],
)
def test_a_wrong_shape_is_refused(store: Store, part: str, shape: tuple[int, ...]) -> None:
    """Parts that contradict the shape or the config are an input error, with numbers."""
    how = {"num_bits": 4, "symmetric": False, **STRATEGIES["group"]}
    stored = _stored(8, 64, **how)
    stored[part] = torch.zeros(shape, dtype=stored[part].dtype)
    with pytest.raises(InputError, match=r"\[|\d") as caught:
        _packed(store, stored, **how)
    assert caught.value.code is Code.SHAPE_MISMATCH


def test_zero_points_have_to_agree_with_the_config(store: Store) -> None:
    """Stored although symmetric, or missing although not."""
    asymmetric = {"num_bits": 4, "symmetric": False, **STRATEGIES["group"]}
    symmetric = asymmetric | {"symmetric": True}
    with pytest.raises(InputError):
        _packed(store, _stored(8, 64, **asymmetric), **symmetric)
    with pytest.raises(InputError):
        _packed(store, _stored(8, 64, **symmetric), **asymmetric)


def test_plain_modules_are_left_alone_and_activations_belong_to_theirs(store: Store) -> None:
    """Of a mixed checkpoint only the packed one comes, with its input scale."""
    how = {"num_bits": 4, **STRATEGIES["group"]}
    named = {f"a.{name}": tensor for name, tensor in _stored(8, 64, **how).items()}
    named["a.input_scale"] = torch.ones(1)
    named |= {"lm_head.weight": torch.zeros(4, 4), "a.bias": torch.zeros(8)}
    named |= {"attn.k_scale": torch.ones(1), "norm.weight": torch.ones(8)}
    settings = compressed_pack.settings(_config(**how))
    assert settings is not None
    (packed,) = compressed_pack.packed(store(named), settings)
    assert packed.name == "a.weight"
    assert "input_scale" in packed.roles


def test_two_widths_that_both_fit_are_refused(store: Store) -> None:
    """Where 3 and 4 bits fill the same words and scales, nothing is guessed."""
    group = {"targets": ["re:a"], "weights": {"num_bits": 4, "strategy": "channel"}}
    other = {"targets": ["re:b"], "weights": {"num_bits": 3, "strategy": "channel"}}
    config = _config(num_bits=4) | {"config_groups": {"one": group, "two": other}}
    settings = compressed_pack.settings(config)
    assert settings is not None
    stored = _stored(4, 8, num_bits=4, strategy="channel")
    tensors = store({f"x.{name}": tensor for name, tensor in stored.items()})
    with pytest.raises(InputError) as caught:
        list(compressed_pack.packed(tensors, settings))
    assert caught.value.code is Code.SHAPE_AMBIGUOUS


def test_skipping_adds_to_what_the_config_ignores() -> None:
    """The list grows by each module once, and nothing else of the config changes."""
    config = _config(num_bits=4)
    changed = compressed_pack.skipping(config, ["a", "lm_head"])
    assert changed == config | {"ignore": ["lm_head", "a"]}
