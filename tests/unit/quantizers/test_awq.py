"""AWQ against a packer and a decoder of this file's own.

AutoAWQ is no longer released and needs an old torch. Both here follow the format's description: a
word holds outputs 0, 2, 4, 6, 1, 3, 5, 7 from its lowest bits upwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from adaptool.errors import InputError
from adaptool.model.quantizer import Packed
from adaptool.quantizers import awq
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]

INPUTS, OUTPUTS, GROUP = 96, 40, 32
CONFIG = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
UPWARDS = (0, 2, 4, 6, 1, 3, 5, 7)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    rows = []
    for row in codes.tolist():
        eights = [row[start : start + 8] for start in range(0, len(row), 8)]
        numbers = [
            sum(eight[output] << 4 * place for place, output in enumerate(UPWARDS))
            for eight in eights
        ]
        rows.append(np.array(numbers, dtype="<u4").view("<i4").tolist())
    return torch.tensor(rows, dtype=torch.int32)


@dataclass(frozen=True)
class Case:
    """A quantized layer before packing: codes (in, out), zeros and scales (groups, out)."""

    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor

    @property
    def tensors(self) -> Tensors:
        """As they are stored."""
        packed = {"x.qweight": _pack(self.codes), "x.qzeros": _pack(self.zeros)}
        return {**packed, "x.scales": self.scales}

    @property
    def weight(self) -> torch.Tensor:
        """(out, in): exact in float64, then rounded once."""
        group = torch.arange(len(self.codes)) * len(self.scales) // len(self.codes)
        steps = (self.codes - self.zeros[group]).double()
        return (steps * self.scales[group].double()).T.float().to(self.scales.dtype)


def _case(dtype: torch.dtype = torch.float16, groups: int = INPUTS // GROUP) -> Case:
    generator = torch.Generator().manual_seed(groups)
    codes = torch.randint(16, (INPUTS, OUTPUTS), generator=generator)
    zeros = torch.randint(16, (groups, OUTPUTS), generator=generator)
    codes[0, :4], zeros[0, :4] = torch.tensor([0, 15, 0, 15]), torch.tensor([0, 0, 15, 15])
    scales = (torch.randn((groups, OUTPUTS), generator=generator) * 0.01).to(dtype)
    scales[-1, :4] = torch.tensor([0.0, torch.finfo(dtype).tiny, 6e4, -1e-7]).to(dtype)
    return Case(codes, zeros, scales)


def _packed(store: Store, config: dict[str, Any], tensors: Tensors) -> Packed:
    settings = awq.settings(config)
    assert settings is not None
    (packed,) = awq.packed(store(tensors), settings)
    return packed


def _assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    pattern = torch.int32 if ours.dtype == torch.float32 else torch.int16
    assert torch.equal(ours.contiguous().view(pattern), theirs.contiguous().view(pattern))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_decodes_what_was_packed(store: Store, decode: Decode, dtype: torch.dtype) -> None:
    """Codes, zero points of 0 included, and scales of every dtype, extreme ones too."""
    case = _case(dtype)
    packed = _packed(store, CONFIG, case.tensors)
    assert packed.name == "x.weight"
    assert packed.shape == (OUTPUTS, INPUTS)
    _assert_same_bits(decode(packed), case.weight)


def test_one_group_of_all_inputs(store: Store, decode: Decode) -> None:
    """A group_size of -1."""
    case = _case(groups=1)
    _assert_same_bits(
        decode(_packed(store, {**CONFIG, "group_size": -1}, case.tensors)), case.weight
    )


@pytest.mark.parametrize("output", range(8))
def test_each_place_of_a_word_is_one_output(store: Store, decode: Decode, output: int) -> None:
    """One code in one place comes out at one row."""
    codes = torch.zeros(32, 8, dtype=torch.int64)
    codes[:, output] = 9
    case = Case(codes, torch.zeros(1, 8, dtype=torch.int64), torch.ones(1, 8).half())
    weight = decode(_packed(store, CONFIG, case.tensors))
    assert torch.equal(weight, codes.T.half())


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 29), (7, 9), (8, 16), (39, 40), (4, 4)])
def test_rows_equal_the_slice_of_the_whole(
    store: Store, decode: Decode, start: int, stop: int
) -> None:
    """Rows that begin in the middle of a word are the same rows."""
    case = _case()
    packed = _packed(store, CONFIG, case.tensors)
    _assert_same_bits(decode(packed, start, stop), case.weight[start:stop])


def test_every_stored_tensor_has_a_role_and_plain_ones_none(store: Store) -> None:
    """A checkpoint that mixes both gives the packed weights only; scaled activations stay."""
    quantized = {f"a.{key}": value for key, value in _case().tensors.items()}
    plain = {
        "a.x.bias": torch.ones(4),
        "head.weight": torch.ones(8, 2),
        "act.scales": torch.ones(3),
    }
    packed = _packed(store, CONFIG, {**plain, **quantized})
    assert packed.name == "a.x.weight"
    assert sorted(ref.name for ref in packed.roles.values()) == sorted(quantized)
    assert json.loads(json.dumps(dict(packed.settings))) == {"group_size": GROUP}


@pytest.mark.parametrize(
    ("config", "ours"),
    [
        (CONFIG, True),
        ({"quant_method": "awq"}, True),
        ({"quant_method": "awq", "bits": 4, "version": "GEMM"}, True),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, True),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, False),
        ({"quant_method": "awq", "bits": 4, "backend": "llm-awq"}, False),
        ({"quant_method": "awq", "bits": 8}, False),
        ({"quant_method": "gptq", "bits": 4}, False),
        ({}, False),
    ],
)
def test_config_is_recognised(config: dict[str, Any], ours: bool) -> None:
    """Only 4 bits in the GEMM layout are this scheme's."""
    assert (awq.settings(config) is not None) is ours


@pytest.mark.parametrize(
    ("changes", "tensor", "says"),
    [
        ({"x.qzeros": None}, "x.qweight", "its x.qzeros is missing"),
        ({"x.scales": None}, "x.qweight", "its x.scales is missing"),
        ({"x.qweight": None}, "x.qzeros", "its x.qweight is missing"),
        ({"x.weight": torch.ones(2)}, "x.weight", "is stored twice"),
        ({"x.qweight": torch.ones(96, 5)}, "x.qweight", "is F32"),
        ({"x.scales": torch.ones(3, 40, dtype=torch.int32)}, "x.scales", "is I32"),
        ({"x.scales": torch.ones(3, 39).half()}, "x.scales", "has shape [3, 39]"),
        ({"x.qzeros": torch.ones(2, 5, dtype=torch.int32)}, "x.qzeros", "has shape [2, 5]"),
        ({"x.qweight": torch.ones(95, 5, dtype=torch.int32)}, "x.qweight", "has 95 inputs"),
        ({"x.qweight": torch.ones(480, dtype=torch.int32)}, "x.qweight", "has shape [480]"),
    ],
)
def test_contradicting_parts_are_refused_by_name(
    store: Store, changes: dict[str, torch.Tensor | None], tensor: str, says: str
) -> None:
    """A missing or misshapen part is an InputError that names it and the numbers."""
    changed = {**_case().tensors, **changes}
    with pytest.raises(InputError) as caught:
        _packed(store, CONFIG, {key: value for key, value in changed.items() if value is not None})
    assert caught.value.tensor == tensor
    assert says in caught.value.message


def test_skip_list_is_extended_once() -> None:
    """Names are appended; AWQ's loaders skip the head in any case."""
    changed = awq.skipping({"modules_to_not_convert": ["a.q_proj"]}, ["a.q_proj", "b.o_proj"])
    assert changed == {"modules_to_not_convert": ["a.q_proj", "b.o_proj"]}
    assert awq.skipping({"modules_to_not_convert": None}, ["b.o_proj"]) == {
        "modules_to_not_convert": ["b.o_proj"]
    }
