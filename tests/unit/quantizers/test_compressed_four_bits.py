"""compressed-tensors NVFP4 and MXFP4 against the library itself, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from adaptool.errors import InputError
from adaptool.model.quantizer import Packed
from adaptool.quantizers import compressed_mxfp4, compressed_nvfp4
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]

NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
FORMATS: dict[str, tuple[str, ModuleType, dict[str, Any]]] = {
    "nvfp4": ("nvfp4-pack-quantized", compressed_nvfp4, NVFP4),
    "mxfp4": ("mxfp4-pack-quantized", compressed_mxfp4, MXFP4),
}


def _same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal in dtype, shape and bits; where one is not a number, so is the other."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert torch.equal(one.isnan(), other.isnan())
    numbers = ~one.isnan()
    left, right = one.contiguous().view(torch.int16), other.contiguous().view(torch.int16)
    assert torch.equal(left[numbers], right[numbers])


def _stored(kind: str) -> Tensors:
    """Every code pair and every scale byte there is."""
    codes = torch.arange(256 * 128).mul(11).to(torch.uint8).reshape(256, 128)
    group = FORMATS[kind][2]["group_size"]
    scale = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 256 // group)
    scale[:, -1] = scale[:, -1].flip(0)
    if kind == "mxfp4":
        return {"weight_packed": codes, "weight_scale": scale}
    outer = torch.tensor([1234.567])
    scales = scale.view(torch.float8_e4m3fn)
    return {"weight_packed": codes, "weight_scale": scales, "weight_global_scale": outer}


def _packed(store: Store, kind: str, stored: Tensors) -> Packed:
    layout, module, weights = FORMATS[kind]
    group = {"targets": ["Linear"], "weights": weights, "format": layout}
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    settings = module.settings({**config, "format": "mixed-precision"})
    assert settings is not None
    tensors = store({f"x.{name}": tensor for name, tensor in stored.items()})
    packed: Packed
    (packed,) = module.packed(tensors, settings)
    assert {ref.name for ref in packed.roles.values()} == set(tensors)
    return packed


def _library(kind: str, stored: Tensors) -> torch.Tensor:
    layout, _, weights = FORMATS[kind]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    compressor = BaseCompressor.get_value_from_registry(layout)
    return compressor.decompress(dict(stored), scheme)["weight"]


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_code_and_scale_equals_the_library(store: Store, decode: Decode, kind: str) -> None:
    """All 16 codes under all 256 scales, also those that are not numbers."""
    stored = _stored(kind)
    packed = _packed(store, kind, stored)
    assert (packed.name, packed.shape, packed.dtype.name) == ("x.weight", (256, 256), "BF16")
    _same(decode(packed), _library(kind, stored))


@pytest.mark.parametrize("outer", [1.0, 3e-39, 3e38, 0.0, float("inf"), 7.77e-5])
@pytest.mark.parametrize("axes", [(1,), ()])
def test_global_scales_equal_the_library(
    store: Store, decode: Decode, outer: float, axes: tuple[int, ...]
) -> None:
    """Also at the ends of float32, and without an axis, which changes where torch rounds."""
    stored = _stored("nvfp4") | {"weight_global_scale": torch.full(axes, outer)}
    _same(decode(_packed(store, "nvfp4", stored)), _library("nvfp4", stored))


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (17, 40), (255, 256), (3, 3), (0, 256)])
@pytest.mark.parametrize("kind", list(FORMATS))
def test_rows_equal_the_slice_of_the_whole(
    store: Store, decode: Decode, kind: str, start: int, stop: int
) -> None:
    """Any rows are the same rows."""
    packed = _packed(store, kind, _stored(kind))
    _same(decode(packed, start, stop), decode(packed)[start:stop])


@pytest.mark.parametrize("kind", list(FORMATS))
def test_what_the_library_packs_is_read_back(store: Store, decode: Decode, kind: str) -> None:
    """The library's own parts, with the input scale that belongs to them."""
    layout, _, weights = FORMATS[kind]
    scale = torch.full((8, 64 // weights["group_size"]), 0.25, dtype=torch.bfloat16)
    plain = {"weight": torch.randn(8, 64, dtype=torch.bfloat16), "weight_scale": scale}
    if kind == "nvfp4":
        plain["weight_global_scale"] = torch.tensor([0.5])
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    stored = BaseCompressor.get_value_from_registry(layout).compress(plain, scheme)
    stored["input_global_scale"] = torch.ones(1)
    _same(decode(_packed(store, kind, stored)), _library(kind, stored))


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_global_scale"])
def test_a_missing_part_is_refused(store: Store, part: str) -> None:
    """The message names it, or what is left alone without it."""
    stored = _stored("nvfp4")
    del stored[part]
    with pytest.raises(InputError, match=r"x\.weight"):
        _packed(store, "nvfp4", stored)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("weight_scale", torch.zeros(256, 8).to(torch.float8_e4m3fn)),
        ("weight_scale", torch.zeros(256, 16)),
        ("weight_global_scale", torch.ones(2)),
        ("weight_packed", torch.zeros(256, 127, dtype=torch.uint8)),
        ("weight_packed", torch.zeros(256, 128, dtype=torch.int32)),
    ],
)
def test_a_wrong_part_is_refused(store: Store, part: str, wrong: torch.Tensor) -> None:
    """Shapes and dtypes that contradict the format are an input error."""
    with pytest.raises(InputError, match=r"x\.weight"):
        _packed(store, "nvfp4", _stored("nvfp4") | {part: wrong})


def test_a_format_that_the_config_does_not_have_is_refused(store: Store) -> None:
    """An MXFP4 module in an NVFP4 model would otherwise pass for two plain tensors."""
    with pytest.raises(InputError, match="mxfp4"):
        _packed(store, "nvfp4", _stored("mxfp4"))
