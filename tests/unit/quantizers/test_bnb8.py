"""LLM.int8() against bitsandbytes on this CPU, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed
from adaptool.quantizers import bnb8
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]

CONFIG = {"quant_method": "bitsandbytes", "load_in_8bit": True, "model_type": "llama"}


def _quantized(rows: int, columns: int) -> Tensors:
    generator = torch.Generator().manual_seed(rows * columns)
    weight = torch.randn((rows, columns), generator=generator, dtype=torch.float32).half()
    codes, scales, _ = int8_vectorwise_quant(weight)
    layout = torch.tensor(0, dtype=torch.uint8)
    return {"x.weight": codes, "x.SCB": scales, "x.weight_format": layout}


def _packed(store: Store, tensors: Tensors) -> Packed:
    settings = bnb8.settings(CONFIG)
    assert settings is not None
    (packed,) = bnb8.packed(store(tensors), settings)
    return packed


def _assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.shape == theirs.shape
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize("shape", [(64, 96), (7, 33), (1, 1), (300, 5)], ids=str)
def test_decodes_as_the_library(store: Store, decode: Decode, shape: tuple[int, int]) -> None:
    """The library multiplies by a rounded 1/127, in float32."""
    tensors = _quantized(*shape)
    expected = int8_vectorwise_dequant(tensors["x.weight"], tensors["x.SCB"])
    _assert_same_bits(decode(_packed(store, tensors)), expected)


def test_every_code_at_extreme_scales_decodes_as_the_library(store: Store, decode: Decode) -> None:
    """All 256 codes, with zero, subnormal, huge, infinite and NaN scales."""
    codes = torch.arange(-128, 128, dtype=torch.int8).repeat(7, 1)
    scales = torch.tensor([0.0, 1e-44, 1e-37, 1.0, 3.4e38, torch.inf, torch.nan])
    expected = int8_vectorwise_dequant(codes, scales)
    ours = decode(_packed(store, {"x.weight": codes, "x.SCB": scales}))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 17), (18, 19), (6, 6)])
def test_rows_equal_the_slice_of_the_whole(
    store: Store, decode: Decode, start: int, stop: int
) -> None:
    """A row is decoded from its own bytes and its own scale."""
    packed = _packed(store, _quantized(19, 40))
    _assert_same_bits(decode(packed, start, stop), decode(packed)[start:stop])


def test_every_stored_tensor_has_a_role_and_plain_ones_none(store: Store) -> None:
    """A checkpoint that mixes both gives the packed weights only; weight_format may be absent."""
    first, second = _quantized(8, 16), _quantized(4, 16)
    del second["x.weight_format"]
    quantized = {f"a.{key}": value for key, value in first.items()}
    quantized |= {f"b.{key}": value for key, value in second.items()}
    plain = {"norm.weight": torch.ones(16), "head.weight": torch.ones(9, 16)}
    found = list(bnb8.packed(store({**plain, **quantized}), {"family": None}))
    assert sorted(packed.name for packed in found) == ["a.x.weight", "b.x.weight"]
    roles = [ref.name for packed in found for ref in packed.roles.values()]
    assert sorted(roles) == sorted(quantized)
    assert json.loads(json.dumps([packed.settings for packed in found])) == [{}, {}]


@pytest.mark.parametrize(
    ("config", "ours"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, True),
        ({"load_in_8bit": True}, True),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, False),
        ({"quant_method": "fp8"}, False),
        ({}, False),
    ],
)
def test_config_is_recognised(config: dict[str, Any], ours: bool) -> None:
    """Only a config that says 8 bits of bitsandbytes is this scheme's."""
    assert (bnb8.settings(config) is not None) is ours


@pytest.mark.parametrize(
    ("changes", "tensor", "says"),
    [
        ({"x.SCB": None}, "x.weight", "its x.SCB is missing"),
        ({"x.weight": None}, "x.SCB", "its x.weight is missing"),
        ({"x.weight": torch.ones(8, 16)}, "x.weight", "is F32"),
        ({"x.SCB": torch.ones(7)}, "x.SCB", "has shape [7]"),
        ({"x.SCB": torch.ones(8).half()}, "x.SCB", "is F16"),
        ({"x.weight_format": torch.tensor(1, dtype=torch.uint8)}, "x.weight_format", "is 1"),
        ({"x.weight_format": torch.zeros(2, dtype=torch.uint8)}, "x.weight_format", "2 elements"),
        ({"x.weight": torch.ones(8, dtype=torch.int8)}, "x.weight", "has shape [8]"),
        ({"x.weight": torch.ones(8, 0, dtype=torch.int8)}, "x.weight", "has shape [8, 0]"),
    ],
)
def test_contradicting_parts_are_refused_by_name(
    store: Store, changes: dict[str, torch.Tensor | None], tensor: str, says: str
) -> None:
    """A missing or misshapen part is an InputError that names it and the numbers."""
    changed = {**_quantized(8, 16), **changes}
    with pytest.raises(InputError) as caught:
        _packed(store, {key: value for key, value in changed.items() if value is not None})
    assert caught.value.tensor == tensor
    assert says in caught.value.message


def test_conv1d_family_is_unsupported(store: Store) -> None:
    """GPT-2's layers are packed transposed, which a square one would not show."""
    settings = bnb8.settings({**CONFIG, "model_type": "gpt2"})
    assert settings is not None
    with pytest.raises(MismatchError) as caught:
        list(bnb8.packed(store(_quantized(16, 16)), settings))
    assert caught.value.code is Code.UNSUPPORTED


def test_skip_list_keeps_what_loaders_skip_without_one() -> None:
    """A list replaces the loader's own, so the first one names the head as well."""
    expected = ["lm_head", "m.up_proj"]
    for before in ({}, {"llm_int8_skip_modules": None}):
        assert bnb8.skipping(before, ["m.up_proj"]) == {"llm_int8_skip_modules": expected}
    before = {"llm_int8_skip_modules": []}
    assert bnb8.skipping(before, ["m.up_proj"]) == {"llm_int8_skip_modules": ["m.up_proj"]}
