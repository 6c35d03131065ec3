"""ModelOpt FP8 and NVFP4 against their formula, written here from the format's description.

ModelOpt itself needs more than a test should install.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch

from adaptool.errors import InputError
from adaptool.model.quantizer import Packed
from adaptool.quantizers import modelopt_fp8, modelopt_nvfp4, quantizers
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]

CONFIG = {"quant_method": "modelopt", "ignore": ["lm_head"], "dtype": "bfloat16"}
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def _same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal in dtype, shape and bits; where one is not a number, so is the other."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert torch.equal(one.isnan(), other.isnan())
    bits = {2: torch.int16, 4: torch.int32}[one.element_size()]
    numbers = ~one.isnan()
    left, right = one.contiguous().view(bits), other.contiguous().view(bits)
    assert torch.equal(left[numbers], right[numbers])


def _packed(store: Store, module: ModuleType, stored: Tensors, **config: Any) -> Packed:
    settings = module.settings(CONFIG | config)
    assert settings is not None
    packed: Packed
    (packed,) = module.packed(store(stored), settings)
    assert {ref.name for ref in packed.roles.values()} == set(stored)
    return packed


def _nvfp4() -> Tensors:
    """Every code pair and every scale byte there is."""
    codes = torch.arange(256 * 64).mul(11).to(torch.uint8).reshape(256, 64)
    scales = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 8)
    outer = torch.tensor(0.0123)
    scales = scales.view(torch.float8_e4m3fn)
    return {"x.weight": codes, "x.weight_scale": scales, "x.weight_scale_2": outer}


def _fp8(*shape: int) -> Tensors:
    codes = torch.arange(40 * 96).to(torch.uint8).reshape(40, 96).view(torch.float8_e4m3fn)
    return {"x.weight": codes, "x.weight_scale": torch.rand(shape), "x.input_scale": torch.ones(())}


@pytest.mark.parametrize("axes", [(), (1,)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_nvfp4_follows_its_formula(
    store: Store, decode: Decode, dtype: str, axes: tuple[int, ...]
) -> None:
    """All codes under all scales: the scales' product first, in float32."""
    stored = _nvfp4()
    stored["x.weight_scale_2"] = stored["x.weight_scale_2"].reshape(axes)
    packed = _packed(store, modelopt_nvfp4, stored, quant_algo="NVFP4", dtype=dtype)
    table = torch.tensor([*E2M1, *(-value for value in E2M1)])
    codes = stored["x.weight"].long()
    values = table[torch.stack([codes % 16, codes // 16], dim=2).reshape(256, 128)]
    scales = stored["x.weight_scale"].float() * stored["x.weight_scale_2"]
    expected = values * scales.repeat_interleave(16, dim=1)
    _same(decode(packed), expected.to(getattr(torch, dtype)))
    _same(decode(packed, 17, 40), decode(packed)[17:40])


@pytest.mark.parametrize("shape", [(), (1,), (40,), (40, 1)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_fp8_follows_its_formula(
    store: Store, decode: Decode, dtype: str, shape: tuple[int, ...]
) -> None:
    """Codes and scales are in the model's dtype before they are multiplied."""
    stored = _fp8(*shape)
    packed = _packed(store, modelopt_fp8, stored, quant_algo="FP8", dtype=dtype)
    plain = getattr(torch, dtype)
    scales = stored["x.weight_scale"].to(plain).reshape(-1, 1)
    _same(decode(packed), stored["x.weight"].to(plain) * scales)
    _same(decode(packed, 3, 9), decode(packed)[3:9])


@pytest.mark.parametrize("part", ["x.weight", "x.weight_scale", "x.weight_scale_2"])
def test_a_missing_part_is_refused(store: Store, part: str) -> None:
    """The message names it, or what is left alone without it."""
    stored = _nvfp4()
    del stored[part]
    with pytest.raises(InputError, match=r"x\.weight"):
        _packed(store, modelopt_nvfp4, stored, quant_algo="NVFP4")


def test_inputs_scaled_beforehand_are_refused(store: Store) -> None:
    """With `pre_quant_scale` the stored weight is not the model's."""
    stored = _nvfp4() | {"x.pre_quant_scale": torch.ones(128)}
    with pytest.raises(InputError) as caught:
        _packed(store, modelopt_nvfp4, stored, quant_algo="NVFP4")
    assert caught.value.tensor == "x.pre_quant_scale"


@pytest.mark.parametrize(
    ("algorithm", "schemes"),
    [
        ("FP8", {"modelopt_fp8"}),
        ("nvfp4", {"modelopt_nvfp4"}),
        ("W4A16_NVFP4", {"modelopt_nvfp4"}),
        ("NVFP4_SVD", set()),
        ("FP8_PB_WO", set()),
        ("MIXED_PRECISION", set()),
    ],
)
def test_an_algorithm_has_one_scheme(algorithm: str, schemes: set[str]) -> None:
    """Algorithms that are not read have none."""
    config = CONFIG | {"quant_algo": algorithm}
    found = {name for name, each in quantizers().items() if each.settings(config) is not None}
    assert found == schemes


@pytest.mark.parametrize("module", [modelopt_fp8, modelopt_nvfp4])
def test_skipping_adds_to_what_the_config_ignores(module: ModuleType) -> None:
    """The list grows by each module once."""
    assert module.skipping(CONFIG, ["a", "lm_head"]) == CONFIG | {"ignore": ["lm_head", "a"]}
