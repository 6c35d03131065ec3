"""GPTQ against a packer and a decoder of this file's own.

No wheel of gptqmodel installs on a CPU machine. Both here follow the format's description: a column
of codes is one long little-endian number, the first code in its lowest bits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed
from adaptool.quantizers import gptq
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]

INPUTS, OUTPUTS, GROUP = 96, 64, 32


def _words(codes: Sequence[int], bits: int) -> list[int]:
    """The codes end to end as signed 32-bit words."""
    number = sum(code << place * bits for place, code in enumerate(codes))
    count = -(-len(codes) * bits // 32)
    return np.frombuffer(number.to_bytes(count * 4, "little"), "<i4").tolist()


def _pack_down(codes: torch.Tensor, bits: int) -> torch.Tensor:
    columns = [_words(column, bits) for column in codes.T.tolist()]
    return torch.tensor(columns, dtype=torch.int32).T.contiguous()


def _pack_across(codes: torch.Tensor, bits: int) -> torch.Tensor:
    return torch.tensor([_words(row, bits) for row in codes.tolist()], dtype=torch.int32)


@dataclass(frozen=True)
class Case:
    """A quantized layer before packing: codes (in, out), zeros and scales (groups, out)."""

    bits: int
    version: int
    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    group: torch.Tensor

    @property
    def config(self) -> dict[str, Any]:
        """As the writer puts it into config.json."""
        layout = "gptq" if self.version == 1 else "gptq_v2"
        shared = {"quant_method": "gptq", "group_size": GROUP, "desc_act": True, "sym": False}
        return {**shared, "bits": self.bits, "checkpoint_format": layout}

    @property
    def tensors(self) -> Tensors:
        """As they are stored: v1 keeps one less than each zero point, within its bits."""
        zeros = (self.zeros - int(self.version == 1)) % 2**self.bits
        return {
            "x.qweight": _pack_down(self.codes, self.bits),
            "x.qzeros": _pack_across(zeros, self.bits),
            "x.scales": self.scales,
            "x.g_idx": self.group.int(),
        }

    @property
    def weight(self) -> torch.Tensor:
        """(out, in): exact in float64, then rounded once."""
        steps = (self.codes - self.zeros[self.group]).double()
        exact = (steps * self.scales[self.group].double()).T
        # 11 bits times 9 fit float32, so no product is rounded twice.
        return exact.float().to(self.scales.dtype)


def _case(
    bits: int,
    *,
    version: int = 2,
    dtype: torch.dtype = torch.float16,
    inputs: int = INPUTS,
    outputs: int = OUTPUTS,
    act_order: bool = False,
) -> Case:
    generator = torch.Generator().manual_seed(bits * 1000 + inputs + outputs)
    groups = -(-inputs // GROUP)

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(2**bits, shape, generator=generator)

    codes, zeros = integers(inputs, outputs), integers(groups, outputs)
    # Every extreme meets every other: the least and the greatest zero point and code.
    zeros[0, :4] = torch.tensor([0, 0, 2**bits - 1, 2**bits - 1])
    codes[0, :4] = torch.tensor([0, 2**bits - 1, 0, 2**bits - 1])
    scales = (torch.randn((groups, outputs), generator=generator) * 0.01).to(dtype)
    scales[-1, :4] = torch.tensor([0.0, torch.finfo(dtype).tiny, 6e4, -1e-7]).to(dtype)
    group = torch.arange(inputs) // GROUP
    if act_order:
        group = group[torch.randperm(inputs, generator=generator)]
    return Case(bits, version, codes, zeros, scales, group)


def _packed(store: Store, config: dict[str, Any], tensors: Tensors) -> Packed:
    settings = gptq.settings(config)
    assert settings is not None
    (packed,) = gptq.packed(store(tensors), settings)
    return packed


def _assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    pattern = torch.int32 if ours.dtype == torch.float32 else torch.int16
    assert torch.equal(ours.contiguous().view(pattern), theirs.contiguous().view(pattern))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_decodes_what_was_packed(
    store: Store, decode: Decode, *, bits: int, version: int, dtype: torch.dtype, act_order: bool
) -> None:
    """Every width and both formats, whatever the order of the inputs."""
    case = _case(bits, version=version, dtype=dtype, act_order=act_order)
    packed = _packed(store, case.config, case.tensors)
    assert packed.name == "x.weight"
    assert packed.shape == (OUTPUTS, INPUTS)
    expected = case.weight
    if dtype == torch.float32:
        steps = (case.codes - case.zeros[case.group]).double()
        expected = (steps * case.scales[case.group].double()).T.float()
    _assert_same_bits(decode(packed), expected)


def test_three_bit_codes_straddle_words(store: Store, decode: Decode) -> None:
    """Codes 10 and 21 of 32 lie in two words each; each alone is found again."""
    for place in range(32):
        codes = torch.zeros(32, 32, dtype=torch.int64)
        codes[place] = 5
        zeros, scales = torch.zeros(1, 32, dtype=torch.int64), torch.ones(1, 32).half()
        case = Case(3, 2, codes, zeros, scales, torch.zeros(32, dtype=torch.int64))
        weight = decode(_packed(store, case.config, case.tensors))
        assert torch.equal(weight, codes.T.half())


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 41), (31, 33), (63, 64), (8, 8), (32, 64)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rows_equal_the_slice_of_the_whole(
    store: Store, decode: Decode, bits: int, start: int, stop: int
) -> None:
    """Rows whose zero points begin in the middle of a word are the same rows."""
    case = _case(bits, version=1, act_order=True)
    packed = _packed(store, case.config, case.tensors)
    _assert_same_bits(decode(packed, start, stop), case.weight[start:stop])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ragged_edges_are_cut(store: Store, decode: Decode, bits: int) -> None:
    """A last group that is not full, and words that are not: 90 inputs, 40 outputs."""
    case = _case(bits, inputs=90, outputs=40)
    packed = _packed(store, case.config, case.tensors)
    assert packed.shape == (40, 90)
    _assert_same_bits(decode(packed), case.weight)
    _assert_same_bits(decode(packed, 33, 40), case.weight[33:])


@pytest.mark.parametrize("absent", [True, False])
def test_empty_group_index_means_groups_in_order(
    store: Store, decode: Decode, absent: bool
) -> None:
    """Writers without act order leave g_idx out or zero; kernels then take i // group_size."""
    case = _case(4)
    tensors = case.tensors
    tensors["x.g_idx"] = torch.zeros_like(tensors["x.g_idx"])
    if absent:
        del tensors["x.g_idx"]
    _assert_same_bits(decode(_packed(store, case.config, tensors)), case.weight)


@pytest.mark.parametrize("absent", [True, False])
def test_one_group_of_all_inputs(store: Store, decode: Decode, absent: bool) -> None:
    """A group_size of -1."""
    case = _case(4, inputs=GROUP)
    config, tensors = {**case.config, "group_size": -1}, case.tensors
    if absent:
        del tensors["x.g_idx"]
    _assert_same_bits(decode(_packed(store, config, tensors)), case.weight)


def test_group_index_out_of_range_is_refused(store: Store, decode: Decode) -> None:
    """An index that would read another row's scales, or none, is an InputError."""
    case = _case(4)
    for wrong in (-1, 3):
        tensors = case.tensors
        tensors["x.g_idx"][7] = wrong
        with pytest.raises(InputError) as caught:
            decode(_packed(store, case.config, tensors))
        assert caught.value.tensor == "x.g_idx"
        assert str(wrong) in caught.value.message


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_dynamic_module_has_the_bits_of_its_shapes(store: Store, decode: Decode, bits: int) -> None:
    """Where `dynamic` overrides the config, a module's own widths count."""
    case = _case(bits)
    dynamic = {"+:.*x$": {"bits": bits, "group_size": GROUP}}
    config = {**case.config, "bits": 4, "group_size": 128, "dynamic": dynamic}
    _assert_same_bits(decode(_packed(store, config, case.tensors)), case.weight)


def test_every_stored_tensor_has_a_role_and_plain_ones_none(store: Store) -> None:
    """A checkpoint that mixes both gives the packed weights only; biases stay plain."""
    case = _case(4)
    quantized = {f"a.{key}": value for key, value in case.tensors.items()}
    quantized |= {f"b.{key}": value for key, value in case.tensors.items() if "g_idx" not in key}
    plain = {
        "a.x.bias": torch.ones(OUTPUTS),
        "norm.weight": torch.ones(8),
        "act.scales": torch.ones(3),
    }
    settings = gptq.settings(case.config)
    assert settings is not None
    found = list(gptq.packed(store({**plain, **quantized}), settings))
    assert sorted(packed.name for packed in found) == ["a.x.weight", "b.x.weight"]
    roles = [ref.name for packed in found for ref in packed.roles.values()]
    assert sorted(roles) == sorted(quantized)
    assert json.loads(json.dumps([packed.settings for packed in found]))


@pytest.mark.parametrize(
    ("config", "ours"),
    [
        ({"quant_method": "gptq", "bits": 4}, True),
        ({"quant_method": "gptq", "bits": 3, "format": "gptq_v2"}, True),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, False),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, False),
        ({"quant_method": "gptq", "bits": 5}, False),
        ({"quant_method": "gptq"}, False),
        ({"quant_method": "awq", "bits": 4}, False),
        ({}, False),
    ],
)
def test_config_is_recognised(config: dict[str, Any], ours: bool) -> None:
    """Only widths and layouts that are decoded here are this scheme's."""
    assert (gptq.settings(config) is not None) is ours


@pytest.mark.parametrize(
    ("changes", "tensor", "says"),
    [
        ({"x.qzeros": None}, "x.qweight", "its x.qzeros is missing"),
        ({"x.scales": None}, "x.qweight", "its x.scales is missing"),
        ({"x.qweight": None}, "x.qzeros", "its x.qweight is missing"),
        ({"x.qweight": None, "x.qzeros": None}, "x.g_idx", "its x.qweight is missing"),
        ({"x.weight": torch.ones(2)}, "x.weight", "is stored twice"),
        ({"x.qweight": torch.ones(12, 64)}, "x.qweight", "is F32"),
        ({"x.scales": torch.ones(3, 64, dtype=torch.int32)}, "x.scales", "is I32"),
        ({"x.scales": torch.ones(3, 63).half()}, "x.scales", "has shape [3, 63]"),
        ({"x.scales": torch.ones(192).half()}, "x.scales", "has shape [192]"),
        ({"x.scales": torch.ones(2, 64).half()}, "x.scales", "has 2 groups; 96 inputs in groups"),
        ({"x.qzeros": torch.ones(3, 7, dtype=torch.int32)}, "x.qzeros", "has shape [3, 7]"),
        ({"x.qweight": torch.ones(11, 64, dtype=torch.int32)}, "x.qweight", "has shape [11, 64]"),
        ({"x.g_idx": torch.ones(88, dtype=torch.int32)}, "x.qweight", "64 x 88"),
        ({"x.g_idx": torch.ones(96)}, "x.g_idx", "is F32"),
    ],
)
def test_contradicting_parts_are_refused_by_name(
    store: Store, changes: dict[str, torch.Tensor | None], tensor: str, says: str
) -> None:
    """A missing or misshapen part is an InputError that names it and the numbers."""
    case = _case(4)
    changed = {**case.tensors, **changes}
    left = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(InputError) as caught:
        _packed(store, case.config, left)
    assert caught.value.tensor == tensor
    assert says in caught.value.message


def test_three_bit_words_come_in_threes(store: Store) -> None:
    """Otherwise the last codes would be cut."""
    tensors = _case(3).tensors
    tensors["x.qweight"] = tensors["x.qweight"][:-1]
    with pytest.raises(InputError) as caught:
        _packed(store, _case(3).config, tensors)
    assert caught.value.tensor == "x.qweight"


def test_conv1d_family_is_unsupported(store: Store) -> None:
    """GPT-2's layers are packed transposed, which a square one would not show."""
    case = _case(4)
    with pytest.raises(MismatchError) as caught:
        _packed(store, {**case.config, "model_type": "gpt2"}, case.tensors)
    assert caught.value.code is Code.UNSUPPORTED


def test_skipped_modules_are_negative_rules_before_the_others() -> None:
    """A runtime takes the first rule that matches, with re.match, after its two-letter mark."""
    config = {"bits": 4, "dynamic": {"+:.*": {"bits": 8}}}
    modules = ["m.1.up_proj", "m.1.gate_proj"]
    rules = gptq.skipping(config, modules)["dynamic"]

    def first(module: str) -> str:
        return next(rule for rule in rules if re.match(rule[2:], module))

    for module in [*modules, "m.1.gate_up_proj"]:
        assert first(module).startswith("-:")
    for module in ["m.11.up_proj", "m_1.up_proj", "m.1.up_projection", "x.m.1.up_proj"]:
        assert first(module) == "+:.*"
    assert config["dynamic"] == {"+:.*": {"bits": 8}}
