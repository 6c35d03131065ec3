"""New values in bitsandbytes' NF4: the bytes that the library itself makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from bitsandbytes.functional import get_4bit_type, quantize_4bit

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed
from adaptool.quantizers import bnb4
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Encode = Callable[..., tuple[Packed, dict[str, torch.Tensor]]]
Tensors = dict[str, torch.Tensor]

CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True, "model_type": "llama"}


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 0.02).to(dtype)


def _library(weight: torch.Tensor, **how: Any) -> Tensors:
    """The parts as the library stores them."""
    with torch.compiler.set_stance("force_eager"):
        codes, state = quantize_4bit(weight, **({"quant_type": "nf4", "blocksize": 64} | how))
    return {"w": codes} | {f"w.{k}": value for k, value in state.as_dict(packed=True).items()}


def _packed(store: Store, tensors: Tensors) -> Packed:
    settings = bnb4.settings(CONFIG)
    assert settings is not None
    (packed,) = bnb4.packed(store(tensors), settings)
    return packed


def _assert_the_librarys(packed: Packed, parts: Tensors, expected: Tensors) -> None:
    for role, part in parts.items():
        theirs = expected[packed.roles[role].name]
        if role == "quant_state":
            # The text is the library's; spaces follow it, for its length is planned.
            assert bytes(part.numpy()).rstrip(b" ") == bytes(theirs.numpy())
        else:
            assert (part.dtype, part.shape) == (theirs.dtype, theirs.shape)
            assert torch.equal(part.view(torch.uint8), theirs.view(torch.uint8))


HOW = [
    {"blocksize": size, "compress_statistics": double}
    for size in (32, 64, 4096)
    for double in (False, True)
]


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("shape", [(48, 128), (7, 96), (3, 5), (2, 3, 64), (300, 65)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_new_values_are_stored_with_the_librarys_bytes(
    store: Store, encode: Encode, dtype: torch.dtype, shape: tuple[int, ...], how: dict[str, Any]
) -> None:
    """Codes, scales, tables and state; ragged last blocks and odd counts included."""
    packed = _packed(store, _library(_random(*shape, dtype=dtype), **how))
    new = _random(*shape, dtype=dtype, seed=1)
    new.view(-1)[:: max(1, new.numel() // 7)] *= 30
    for height in (1, 16, 1 << 20):
        _, parts = encode(packed, new, height)
        _assert_the_librarys(packed, parts, _library(new, **how))


@pytest.mark.parametrize("double", [False, True])
def test_zeros_and_ties_are_stored_with_the_librarys_bytes(
    store: Store, encode: Encode, double: bool
) -> None:
    """Blocks of nothing but zeros, and values that lie halfway between two codes."""
    table = get_4bit_type("nf4", device="cpu")
    halfway = (table[:-1] + table[1:]) / 2
    new = torch.zeros(65, 64)
    new[::2, 0] = 1
    new[::2, 1:16] = halfway
    new[::2, 16:31] = torch.nextafter(halfway, torch.tensor(torch.inf))
    old = _library(_random(65, 64, dtype=torch.float32), compress_statistics=double)
    packed = _packed(store, old)
    _, parts = encode(packed, new)
    _assert_the_librarys(packed, parts, _library(new, compress_statistics=double))


@pytest.mark.parametrize("storage", [torch.int8, torch.bfloat16, torch.float32], ids=str)
def test_codes_keep_the_dtype_they_are_stored_as(
    store: Store, encode: Encode, storage: torch.dtype
) -> None:
    """bnb_4bit_quant_storage is another name for the same bytes."""
    how = {"quant_storage": storage, "compress_statistics": True}
    packed = _packed(store, _library(_random(64, 128), **how))
    new = _random(64, 128, seed=1)
    _, parts = encode(packed, new, 16)
    _assert_the_librarys(packed, parts, _library(new, **how))


def test_state_has_room_for_any_offset(store: Store, encode: Encode) -> None:
    """A stored offset of one digit grows to one of twenty."""
    packed = _packed(store, _library(torch.zeros(64, 64), compress_statistics=True))
    new = _random(64, 64, dtype=torch.float32) * 1e-6
    _, parts = encode(packed, new)
    _assert_the_librarys(packed, parts, _library(new, compress_statistics=True))
    assert len(parts["quant_state"]) > packed.roles["quant_state"].length


def test_fp4_is_refused_with_the_way_round(store: Store) -> None:
    """It is read, and not written."""
    packed = _packed(store, _library(_random(8, 64), quant_type="fp4"))
    with pytest.raises(MismatchError, match="FP4") as caught:
        bnb4.rewritten(packed)
    assert caught.value.code is Code.UNSUPPORTED
    assert "touched" in str(caught.value.hint)
