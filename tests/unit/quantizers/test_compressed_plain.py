"""compressed-tensors float-, int- and mxfp8-quantized against the library itself, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed
from adaptool.quantizers import compressed_float, compressed_int, compressed_mxfp8
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]

FORMATS = {
    "float": ("float-quantized", compressed_float),
    "int": ("int-quantized", compressed_int),
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "tensor": {"strategy": "tensor"},
    "channel": {"strategy": "channel"},
    "group": {"strategy": "group", "group_size": 20},
    "block": {"strategy": "block", "block_structure": [16, 32]},
}
SCALES = {"tensor": (1,), "channel": (37, 1), "group": (37, 4), "block": (3, 3)}
FLOATS = [torch.bfloat16, torch.float16, torch.float32]


def _same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal in dtype, shape and bits; where one is not a number, so is the other."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert torch.equal(one.isnan(), other.isnan())
    bits = {2: torch.int16, 4: torch.int32}[one.element_size()]
    numbers = ~one.isnan()
    left, right = one.contiguous().view(bits), other.contiguous().view(bits)
    assert torch.equal(left[numbers], right[numbers])


def _codes(kind: str, rows: int, columns: int) -> torch.Tensor:
    """Every byte there is, also those that are not numbers."""
    every = torch.arange(rows * columns).mul(7).to(torch.uint8).reshape(rows, columns)
    return every.view(torch.int8 if kind == "int" else torch.float8_e4m3fn)


def _stored(
    kind: str, strategy: str, *, dtype: torch.dtype = torch.bfloat16, zeros: bool = False
) -> Tensors:
    torch.manual_seed(1)
    scale = torch.randn(SCALES[strategy]).mul(0.02).to(dtype)
    stored = {"weight": _codes(kind, 37, 80), "weight_scale": scale}
    if zeros:
        code = torch.int8 if kind == "int" else torch.float8_e4m3fn
        stored["weight_zero_point"] = torch.randint(-99, 99, scale.shape).to(code)
    return stored


def _config(layout: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": dict(weights)}
    method = {"quant_method": "compressed-tensors", "format": layout}
    return {**method, "config_groups": {"group_0": group}}


def _packed(store: Store, module: ModuleType, config: Mapping[str, Any], stored: Tensors) -> Packed:
    settings = module.settings(config)
    assert settings is not None
    tensors = store({f"x.{name}": tensor for name, tensor in stored.items()})
    (packed,) = module.packed(tensors, settings)
    assert {ref.name for ref in packed.roles.values()} == set(tensors)
    return packed


def _library(layout: str, stored: Tensors, weights: Mapping[str, Any]) -> torch.Tensor:
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    compressor = BaseCompressor.get_value_from_registry(layout)
    return compressor.decompress(dict(stored), scheme)["weight"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_strategy_equals_the_library(
    store: Store, decode: Decode, *, kind: str, strategy: str, zeros: bool, dtype: torch.dtype
) -> None:
    """All codes, with blocks that the weight's edges cut, with and without zero points."""
    layout, module = FORMATS[kind]
    how = {"num_bits": 8, "type": kind, "symmetric": not zeros, **STRATEGIES[strategy]}
    stored = _stored(kind, strategy, dtype=dtype, zeros=zeros)
    packed = _packed(store, module, _config(layout, how), stored)
    assert (packed.name, packed.shape) == ("x.weight", (37, 80))
    _same(decode(packed), _library(layout, stored, how))


@pytest.mark.parametrize("kind", list(FORMATS))
def test_naive_quantized_is_the_same_thing(store: Store, decode: Decode, kind: str) -> None:
    """The older name of the format is read by the type of the weights."""
    how = {"num_bits": 8, "type": kind, **STRATEGIES["channel"]}
    stored = _stored(kind, "channel")
    packed = _packed(store, FORMATS[kind][1], _config("naive-quantized", how), stored)
    _same(decode(packed), _library("naive-quantized", stored, how))


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-40, 3e38, float("inf"), float("nan")])
def test_scales_that_are_no_ordinary_numbers(store: Store, decode: Decode, value: float) -> None:
    """Zero, subnormal, huge, infinite and not-a-number scales, times every code."""
    how = {"num_bits": 8, "type": "float", **STRATEGIES["channel"]}
    stored = _stored("float", "channel")
    stored["weight_scale"].fill_(value)
    packed = _packed(store, compressed_float, _config("float-quantized", how), stored)
    _same(decode(packed), _library("float-quantized", stored, how))


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (15, 17), (31, 37), (9, 9), (0, 37)])
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_rows_equal_the_slice_of_the_whole(
    store: Store, decode: Decode, strategy: str, start: int, stop: int
) -> None:
    """Rows that begin in the middle of a block are the same rows."""
    how = {"num_bits": 8, "type": "int", "symmetric": False, **STRATEGIES[strategy]}
    stored = _stored("int", strategy, zeros=True)
    packed = _packed(store, compressed_int, _config("int-quantized", how), stored)
    _same(decode(packed, start, stop), decode(packed)[start:stop])


def test_mxfp8_equals_the_library_for_every_exponent(store: Store, decode: Decode) -> None:
    """All codes times all 256 exponents, rows one by one too."""
    how = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}
    scale = torch.arange(256, dtype=torch.uint8).repeat_interleave(8).reshape(256, 8)
    stored = {"weight": _codes("float", 256, 256), "weight_scale": scale}
    packed = _packed(store, compressed_mxfp8, _config("mxfp8-quantized", how), stored)
    expected = _library("mxfp8-quantized", stored, how | {"scale_dtype": torch.uint8})
    _same(decode(packed), expected)
    for row in (0, 1, 127, 254, 255):
        _same(decode(packed, row, row + 1), expected[row : row + 1])


@pytest.mark.parametrize("shape", [(1, 37), (37,), (37, 2), (4, 3)])
def test_scales_that_fit_no_strategy_are_refused(store: Store, shape: tuple[int, ...]) -> None:
    """The message has the shape there is and the one that the config asks."""
    how = {"num_bits": 8, "type": "float", **STRATEGIES["channel"]}
    stored = _stored("float", "channel") | {"weight_scale": torch.ones(shape)}
    with pytest.raises(InputError, match=r"\[37, 1\]") as caught:
        _packed(store, compressed_float, _config("float-quantized", how), stored)
    assert caught.value.code is Code.SHAPE_MISMATCH


def test_a_weight_without_scales_and_scales_without_weight_are_refused(store: Store) -> None:
    """Neither passes for a plain tensor."""
    config = _config("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"})
    stored = _stored("int", "channel")
    for part in stored:
        with pytest.raises(InputError, match=r"x\.weight"):
            _packed(store, compressed_int, config, {part: stored[part]})


def test_scales_of_a_plain_weight_are_refused(store: Store) -> None:
    """A 16-bit weight with a scale beside it contradicts itself."""
    config = _config("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"})
    stored = _stored("float", "channel") | {"weight": torch.zeros(37, 80)}
    with pytest.raises(InputError, match="F32"):
        _packed(store, compressed_float, config, stored)
