"""A reversible merge onto a base of every storage scheme comes apart byte by byte.

Codes and scales are random: what decodes them is held against the libraries elsewhere; here the
packed bytes themselves must come back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import adaptool
from adaptool.quantizers import quantizers
from unmerging import lost

OUT, IN = 64, 128
MODULE = "model.layers.0.self_attn.q_proj"
EXPERTS = "model.layers.0.mlp.experts.down_proj"
Tensors = dict[str, torch.Tensor]
GENERATOR = torch.Generator().manual_seed(7)


def _words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, generator=GENERATOR).to(torch.int32)


def _bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=GENERATOR, dtype=torch.uint8)


def _float8(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR).to(torch.float8_e4m3fn)


def _scales(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.rand(shape, generator=GENERATOR) * 0.01 + 0.01).to(dtype)


def _exponents(*shape: int) -> torch.Tensor:
    return torch.randint(118, 124, shape, generator=GENERATOR, dtype=torch.uint8)


def _group(bits: int, kind: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, **more}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def _compressed(form: str, **groups: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"], **groups}


def _awq() -> tuple[dict[str, Any], Tensors]:
    parts = {"qweight": _words(IN, OUT // 8), "qzeros": _words(4, OUT // 8)}
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    return config, _of(MODULE, {**parts, "scales": _scales(4, OUT)})


def _gptq() -> tuple[dict[str, Any], Tensors]:
    parts = {"qweight": _words(IN // 8, OUT), "qzeros": _words(4, OUT // 8)}
    order = torch.arange(IN, dtype=torch.int32) // 32
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
    config |= {"checkpoint_format": "gptq", "sym": False}
    return config, _of(MODULE, {**parts, "scales": _scales(4, OUT), "g_idx": order})


def _pack() -> tuple[dict[str, Any], Tensors]:
    parts = {"weight_packed": _words(OUT, IN // 8), "weight_scale": _scales(OUT, 4)}
    shape = torch.tensor([OUT, IN])
    groups = _group(4, "int", strategy="group", group_size=32)
    return _compressed("pack-quantized", **groups), _of(MODULE, {**parts, "weight_shape": shape})


def _int() -> tuple[dict[str, Any], Tensors]:
    parts = {"weight": _bytes(OUT, IN).view(torch.int8), "weight_scale": _scales(OUT, 1)}
    return _compressed("int-quantized", **_group(8, "int", strategy="channel")), _of(MODULE, parts)


def _float() -> tuple[dict[str, Any], Tensors]:
    parts = {"weight": _float8(OUT, IN), "weight_scale": _scales(OUT, 1, dtype=torch.bfloat16)}
    groups = _group(8, "float", strategy="channel")
    return _compressed("float-quantized", **groups), _of(MODULE, parts)


def _nvfp4() -> tuple[dict[str, Any], Tensors]:
    parts = {"weight_packed": _bytes(OUT, IN // 2), "weight_scale": _float8(OUT, IN // 16).abs()}
    groups = _group(4, "float", strategy="tensor_group", group_size=16)
    outer = torch.tensor([64.0])
    return (
        _compressed("nvfp4-pack-quantized", **groups),
        _of(MODULE, {**parts, "weight_global_scale": outer}),
    )


def _mxfp4() -> tuple[dict[str, Any], Tensors]:
    parts = {"weight_packed": _bytes(OUT, IN // 2), "weight_scale": _exponents(OUT, IN // 32)}
    groups = _group(4, "float", strategy="group", group_size=32)
    return _compressed("mxfp4-pack-quantized", **groups), _of(MODULE, parts)


def _mxfp8() -> tuple[dict[str, Any], Tensors]:
    parts = {"weight": _float8(OUT, IN), "weight_scale": _exponents(OUT, IN // 32)}
    groups = _group(8, "float", strategy="group", group_size=32)
    return _compressed("mxfp8-quantized", **groups), _of(MODULE, parts)


def _modelopt(algorithm: str, parts: Tensors) -> tuple[dict[str, Any], Tensors]:
    return {"quant_method": "modelopt", "quant_algo": algorithm}, _of(MODULE, parts)


def _modelopt_fp8() -> tuple[dict[str, Any], Tensors]:
    scale = torch.tensor(0.02)
    return _modelopt("FP8", {"weight": _float8(OUT, IN), "weight_scale": scale})


def _modelopt_nvfp4() -> tuple[dict[str, Any], Tensors]:
    parts = {"weight": _bytes(OUT, IN // 2), "weight_scale": _float8(OUT, IN // 16).abs()}
    return _modelopt("NVFP4", {**parts, "weight_scale_2": torch.tensor(0.01)})


def _gpt_oss() -> tuple[dict[str, Any], Tensors]:
    tensors = {
        f"{EXPERTS}_blocks": _bytes(3, OUT, IN // 32, 16),
        f"{EXPERTS}_scales": _exponents(3, OUT, IN // 32),
    }
    return {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, tensors


def _of(module: str, parts: Tensors) -> Tensors:
    return {f"{module}.{name}": part for name, part in parts.items()}


MADE: dict[str, Callable[[], tuple[dict[str, Any], Tensors]]] = {
    "awq": _awq,
    "compressed_float": _float,
    "compressed_int": _int,
    "compressed_mxfp4": _mxfp4,
    "compressed_mxfp8": _mxfp8,
    "compressed_nvfp4": _nvfp4,
    "compressed_pack": _pack,
    "gptq": _gptq,
    "modelopt_fp8": _modelopt_fp8,
    "modelopt_nvfp4": _modelopt_nvfp4,
    "mxfp4": _gpt_oss,
}
# With bases that their libraries make: tests/golden/test_unmerge_bases.py.
ELSEWHERE = {"bnb4", "bnb8", "fp8"}


def test_every_scheme_is_under_the_law() -> None:
    """A new file needs a base here."""
    assert MADE.keys() | ELSEWHERE == quantizers().keys()


def _base(folder: Path, scheme: str) -> Path:
    config, tensors = MADE[scheme]()
    kind = "gpt_oss" if scheme == "mxfp4" else "llama"
    folder.mkdir()
    plain = torch.randn(32, IN, generator=GENERATOR).bfloat16()
    save_file({**tensors, "lm_head.weight": plain}, folder / "model.safetensors", {"format": "pt"})
    body = {"model_type": kind, "dtype": "bfloat16", "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(body))
    return folder


def _adapter(folder: Path, scheme: str) -> Path:
    """A LoRA on the packed weight, of experts where they are what is packed."""
    folder.mkdir()
    config: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    if scheme == "mxfp4":
        module, count = EXPERTS.removesuffix(".down_proj"), 3
        config |= {"target_modules": [], "target_parameters": ["experts.down_proj"]}
        config |= {"peft_version": "0.19.1"}
    else:
        module, count = MODULE, 1
        config |= {"target_modules": ["q_proj"]}
    a = torch.randn(2 * count, IN, generator=GENERATOR) * 0.1
    b = torch.randn(OUT, 2 * count, generator=GENERATOR) * 0.1
    prefix = f"base_model.model.{module}.lora_"
    tensors = {f"{prefix}A.weight": a, f"{prefix}B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("mode", ["all", "touched"])
@pytest.mark.parametrize("scheme", MADE)
def test_codes_scales_and_config_come_back(scheme: str, mode: str, tmp_path: Path) -> None:
    """Every byte of the base's weights and config, without knowing how the codes were made."""
    base, adapter = _base(tmp_path / "base", scheme), _adapter(tmp_path / "adapter", scheme)
    adaptool.merge(base, adapter, tmp_path / "merged", quantized=mode, reversible=True)
    result = adaptool.unmerge(tmp_path / "merged", adapter, tmp_path / "out", exact=True)
    assert result.exact
    assert lost(base, tmp_path / "out") == []
