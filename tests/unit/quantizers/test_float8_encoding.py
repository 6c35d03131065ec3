"""New values as FP8: transformers' own bytes where it quantizes, float64 everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.quantizer import Encoding, Packed
from adaptool.quantizers import compressed_float, fp8, modelopt_fp8
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Encode = Callable[..., tuple[Packed, dict[str, torch.Tensor]]]
Tensors = dict[str, torch.Tensor]

E4M3 = torch.float8_e4m3fn
CONFIG = {"quant_method": "fp8", "weight_block_size": [32, 64], "dtype": "bfloat16"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "dtype": "bfloat16"}


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    torch.manual_seed(sum(shape))
    values = torch.randn(shape) * 0.02
    values.view(-1)[:: max(1, values.numel() // 9)] *= 40
    return values.to(dtype)


def _stored(shape: tuple[int, ...], grid: tuple[int, ...], **dtypes: torch.dtype) -> Tensors:
    """Codes and scales of any values: only their shapes and dtypes matter."""
    codes = torch.zeros(shape).to(dtypes.get("codes", E4M3))
    scale = torch.ones(grid).to(dtypes.get("scales", torch.float32))
    return {"x.weight": codes, "x.weight_scale": scale}


def _packed(
    store: Store, stored: Tensors, config: Mapping[str, Any] = CONFIG, module: ModuleType = fp8
) -> Packed:
    settings = module.settings(config)
    assert settings is not None
    packed: Packed
    (packed,) = module.packed(store(stored), settings)
    return packed


def _transformers(weight: torch.Tensor, config: Mapping[str, Any]) -> Tensors:
    read = FineGrainedFP8Config(**{key: config[key] for key in config if key != "dtype"})
    library = Fp8Quantize(SimpleNamespace(quantization_config=read))
    return library.convert({"x.weight": weight})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("block", [[32, 64], [128, 128], None])
@pytest.mark.parametrize("powers", [False, True])
def test_blocks_are_stored_with_transformers_bytes(
    store: Store, encode: Encode, powers: bool, block: list[int] | None, dtype: torch.dtype
) -> None:
    """Codes and scales, of blocks and of the whole tensor, with a block of zeros among them."""
    name = str(dtype).removeprefix("torch.")
    config: dict[str, Any] = {**CONFIG, "weight_block_size": block, "dtype": name}
    if powers:
        config["scale_fmt"] = "ue8m0"
    weight = _random(128, 256, dtype=dtype)
    weight[32:64, 64:128] = 0
    weight[64:128, :64] *= 1e-3
    expected = _transformers(weight, config)
    packed = _packed(store, expected, config)
    for height in (1, 48, 1 << 20):
        _, parts = encode(packed, weight, height)
        assert torch.equal(
            parts["weight"].view(torch.uint8), expected["x.weight"].view(torch.uint8)
        )
        scales = expected["x.weight_scale_inv"]
        assert (parts["scale"].dtype, parts["scale"].shape) == (scales.dtype, scales.shape)
        assert torch.equal(parts["scale"].float(), scales.float())


def _spread(scales: torch.Tensor, shape: tuple[int, ...], block: tuple[int, int]) -> torch.Tensor:
    """Each scale for the elements of its block, in float64; written here from the format."""
    grid = scales.double().reshape(-1, *scales.shape[-2:]) if scales.dim() > 1 else scales.double()
    grid = grid.repeat_interleave(block[0], dim=-2).repeat_interleave(block[1], dim=-1)
    return grid[..., : shape[-2], : shape[-1]].reshape(shape)


def _assert_nearest(codes: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> None:
    """No other code decodes nearer to the value, in float64; none is clipped."""
    every = torch.arange(256, dtype=torch.uint8).view(codes.dtype).double()
    every = every[every.isfinite()].unique()
    wanted = weight.double() / scales
    # Half a step beyond the type's largest value is still rounding; more would be clipping.
    assert float(wanted.abs().max()) <= float(every[-1] + (every[-1] - every[-2]) / 2)
    right = torch.bucketize(wanted, every).clamp(1, len(every) - 1)
    best = torch.minimum((wanted - every[right - 1]).abs(), (wanted - every[right]).abs())
    found = (codes.double() - wanted).abs()
    assert bool((found <= best + 1e-6 * wanted.abs() + 1e-12).all())


BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CASES = {
    "ragged": (fp8, CONFIG, (70, 150), (3, 3), (32, 64)),
    "outputs": (fp8, CONFIG | {"weight_block_size": None}, (70, 150), (70, 1), (1, 150)),
    "stacked": (fp8, CONFIG, (3, 40, 64), (3, 2, 1), (32, 64)),
    "modelopt tensor": (modelopt_fp8, MODELOPT, (70, 150), (1, 1), (70, 150)),
}


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("scale", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("kind", [E4M3, torch.float8_e5m2], ids=str)
def test_codes_are_the_nearest_and_scales_the_largest_magnitude(
    store: Store, encode: Encode, case: str, scale: torch.dtype, kind: torch.dtype
) -> None:
    """Blocks cut short, outputs, stacks and whole tensors, against float64."""
    module, config, shape, grid, block = CASES[case]
    if module is modelopt_fp8 and kind is not E4M3:
        pytest.skip("ModelOpt stores E4M3 only")
    stored = _stored(shape, grid, codes=kind, scales=scale)
    if len(shape) == 3:
        stored = {"e.up": stored["x.weight"], "e.up_scale_inv": stored["x.weight_scale"]}
    if module is modelopt_fp8:
        stored["x.weight_scale"] = stored["x.weight_scale"].reshape(1)
    packed = _packed(store, stored, config, module)
    weight = _random(*shape)
    _, parts = encode(packed, weight, 16)
    role = "scale" if module is fp8 else "weight_scale"
    scales = parts[role].reshape(grid)
    assert scales.dtype == scale
    spread = _spread(scales, shape, block)
    _assert_nearest(parts["weight"], weight, spread)
    largest = weight.double().abs().reshape(-1, *shape[-2:])[0, : block[0], : block[1]].max()
    exact = float(largest) / torch.finfo(kind).max
    smallest = torch.finfo(scale).smallest_normal * torch.finfo(scale).eps
    near = pytest.approx(exact, rel=2 * torch.finfo(scale).eps, abs=smallest)
    assert float(scales.reshape(-1)[0]) == near


@pytest.mark.parametrize("strategy", ["tensor", "channel", "group", "block"])
def test_compressed_tensors_floats_by_every_strategy(
    store: Store, encode: Encode, decode: Decode, strategy: str
) -> None:
    """Scales keep their 16-bit dtype and shape; the codes are the nearest for what is stored."""
    grid, block = {
        "tensor": ((1,), (37, 80)),
        "channel": ((37, 1), (1, 80)),
        "group": ((37, 4), (1, 20)),
        "block": ((3, 3), (16, 32)),
    }[strategy]
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "group_size": None}
    weights |= {"group": {"group_size": 20}, "block": {"block_structure": [16, 32]}}.get(
        strategy, {}
    )
    config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    config |= {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    packed = _packed(store, _stored((37, 80), grid, scales=BF16), config, compressed_float)
    weight = _random(37, 80)
    _, parts = encode(packed, weight, 16)
    scales = parts["weight_scale"]
    assert (scales.dtype, scales.shape) == (BF16, grid)
    _assert_nearest(parts["weight"], weight, _spread(scales.reshape(-1, grid[-1]), (37, 80), block))
    again = _packed(
        store, {"x.weight": parts["weight"], "x.weight_scale": scales}, config, compressed_float
    )
    error = (decode(again).double() - weight.double()).abs()
    assert bool((error <= 0.07 * weight.double().abs() + 0.02 * scales.float().max()).all())


def test_what_decodes_from_fp8_is_stored_with_the_same_codes(
    store: Store, encode: Encode, decode: Decode
) -> None:
    """A weight that did not change is not changed by being stored again."""
    weight = _random(128, 128)
    config = {**CONFIG, "dtype": "float32"}
    stored = _transformers(weight, config)
    packed = _packed(store, stored, config)
    _, parts = encode(packed, decode(packed))
    assert torch.equal(parts["weight"].view(torch.uint8), stored["x.weight"].view(torch.uint8))


def test_values_out_of_the_scales_range_are_refused(store: Store, encode: Encode) -> None:
    """A float16 scale cannot be as small as these values need: no code stands for them."""
    packed = _packed(store, _stored((32, 64), (1, 1), scales=F16))
    with pytest.raises(InputError) as caught:
        encode(packed, torch.full((32, 64), 1e-9).bfloat16())
    assert caught.value.code is Code.RESULT_NOT_FINITE
    assert caught.value.tensor == "x.weight"


def test_four_bit_experts_and_bare_exponents_are_refused(store: Store) -> None:
    """They are read, and not written."""
    experts = {
        "x.weight": torch.zeros(4, 16, dtype=torch.int8),
        "x.weight_scale": torch.ones(4, 1).to(torch.float8_e8m0fnu),
    }
    exponents = _stored((32, 64), (1, 1), scales=torch.uint8)
    for stored, config in ((experts, CONFIG | {"expert_dtype": "fp4"}), (exponents, CONFIG)):
        with pytest.raises(MismatchError) as caught:
            fp8.rewritten(_packed(store, stored, config))
        assert caught.value.code is Code.UNSUPPORTED


def test_schemes_that_write_their_format_are_these() -> None:
    """The others are refused by name: see the merge's own tests."""
    from adaptool.quantizers import quantizers

    writing = {name for name, module in quantizers().items() if isinstance(module, Encoding)}
    assert writing == {"bnb4", "fp8", "compressed_float", "modelopt_fp8"}
