"""Adapters that PEFT trained on real modules, by way of GGUF and MLX: the same effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import adaptool
from adaptool.errors import MismatchError
from tiny_models import MODELS

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj"]
DENSE = [*LINEARS, "gate_proj", "up_proj", "down_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def _trained(folder: Path, family: str, **options: Any) -> tuple[Path, Path]:
    """A base and an adapter on it with no factor at zero."""
    torch.manual_seed(0)
    model = MODELS[family]()
    model.save_pretrained(folder / "base")
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **options))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    peft.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def _merged(base: Path, adapter: Path, out: Path) -> dict[str, torch.Tensor]:
    adaptool.merge(base, adapter, out)
    return {
        name: each for path in out.glob("*.safetensors") for name, each in load_file(path).items()
    }


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"target_modules": DENSE}),
        ("llama", {"target_modules": DENSE, "use_rslora": True, "alpha_pattern": {"k_proj": 3}}),
        ("qwen2", {"target_modules": DENSE}),
        ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "down_proj"]}),
        ("qwen3_moe", {"target_modules": LINEARS}),
        ("qwen3_moe", {"target_modules": LINEARS, "target_parameters": EXPERTS}),
        ("mixtral", {"target_modules": LINEARS, "target_parameters": EXPERTS}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    ],
)
def test_gguf_means_what_the_adapter_means(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    """Written with the base's config and read again, it changes the base in the same way."""
    base, adapter = _trained(tmp_path, family, **options)
    packed = tmp_path / "x.gguf"
    adaptool.convert(adapter, packed, to="gguf", base=base)
    wanted = _merged(base, adapter, tmp_path / "a")
    found = _merged(base, packed, tmp_path / "b")
    before = load_file(base / "model.safetensors")
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        change = (value - before[name]).norm()
        assert (value - found[name]).norm() <= 1e-5 * change + 1e-12, name


def test_an_early_release_stacked_the_other_way_round(tmp_path: Path) -> None:
    """PEFT 0.18 took (experts, out, in) for (experts, in, out): merges know it, and GGUF too."""
    base, adapter = _trained(tmp_path, "qwen3_moe", target_parameters=EXPERTS)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["peft_version"] = "0.18.1"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    # Its A had the outputs' width, its B the inputs'.
    turned = {
        key.replace("lora_A", "lora_x").replace("lora_B", "lora_A").replace("lora_x", "lora_B"): (
            each.T.contiguous()
        )
        for key, each in tensors.items()
    }
    save_file(turned, weights, {"format": "pt"})
    adaptool.convert(adapter, tmp_path / "x.gguf", to="gguf", base=base)
    wanted = _merged(base, adapter, tmp_path / "a")
    found = _merged(base, tmp_path / "x.gguf", tmp_path / "b")
    for name, value in wanted.items():
        assert torch.allclose(value, found[name], rtol=0, atol=1e-6), name


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_mlx_means_what_the_adapter_means(tmp_path: Path, family: str) -> None:
    """PEFT's stacks become switch layers, under the names that MLX-LM has for this family."""
    options = {"target_modules": LINEARS, "target_parameters": EXPERTS}
    base, adapter = _trained(tmp_path, family, **options)
    with pytest.raises(MismatchError, match="stacks of experts"):
        adaptool.convert(adapter, tmp_path / "m", to="mlx")
    adaptool.convert(adapter, tmp_path / "m", to="mlx", base=base)
    block = {"mixtral": "block_sparse_moe"}.get(family, "mlp")
    assert f"model.layers.0.{block}.switch_mlp.up_proj.lora_a" in load_file(
        tmp_path / "m" / "adapters.safetensors"
    )
    wanted = _merged(base, adapter, tmp_path / "a")
    found = _merged(base, tmp_path / "m", tmp_path / "b")
    for name, value in wanted.items():
        assert torch.allclose(value, found[name], rtol=0, atol=1e-6), name


def test_stacks_that_lie_the_other_way_round_are_no_switch_layer(tmp_path: Path) -> None:
    """gpt-oss keeps (experts, in, out), gate and up alternating: exit 4, not another update."""
    base, adapter = _trained(tmp_path, "gpt_oss", target_parameters=EXPERTS)
    with pytest.raises(MismatchError, match="stacks of experts"):
        adaptool.convert(adapter, tmp_path / "m", to="mlx", base=base)


@pytest.mark.parametrize("layout", ["mlx", "gguf"])
def test_peft_loads_what_came_back(tmp_path: Path, layout: str) -> None:
    """PEFT's own deltas of the adapter and of its copy by way of another layout."""
    base, adapter = _trained(tmp_path, "llama", target_modules=DENSE, rank_pattern={"up_proj": 6})
    adaptool.convert(adapter, tmp_path / "there", to=layout, base=base)
    adaptool.convert(tmp_path / "there", tmp_path / "back", to="peft", base=base)
    found = [_deltas(adapter), _deltas(tmp_path / "back")]
    assert found[0].keys() == found[1].keys()
    for name, delta in found[0].items():
        assert torch.allclose(delta, found[1][name], rtol=0, atol=1e-6 * float(delta.abs().max()))


def _deltas(adapter: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = PeftModel.from_pretrained(MODELS["llama"](), str(adapter))
    return {
        name: module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {})
    }
