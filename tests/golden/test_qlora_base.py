"""Adapters trained beside 4-bit weights, merged into a base that was kept in 16 bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes import functional
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from adaptool import MismatchError, merge
from adaptool.findings import Code


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny bf16 Llama and a LoRA for it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    peft.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def _through_nf4(weight: torch.Tensor) -> torch.Tensor:
    """What bitsandbytes makes of a weight: nf4 with double quantization, and back."""
    codes, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    return functional.dequantize_4bit(codes, state).reshape(weight.shape)


def test_dequantized_base_is_the_library_s(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """Every linear weight but the head goes through nf4; then the merge is any other merge."""
    base, adapter = pair
    seen = tmp_path / "seen"
    seen.mkdir()
    tensors = load_file(base / "model.safetensors")
    for name, value in tensors.items():
        if "_proj" in name:
            tensors[name] = _through_nf4(value)
    save_file(tensors, seen / "model.safetensors", metadata={"format": "pt"})
    (seen / "config.json").write_bytes((base / "config.json").read_bytes())
    merge(seen, adapter, tmp_path / "expected")
    result = merge(base, adapter, tmp_path / "out", qlora_base="dequantized")
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert result.stats.quantization_ratio is not None


def test_ratio_is_the_error_over_the_delta(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """|W - nf4(W)| / |delta|, over the touched weights; deltas are sampled, so within a third."""
    base, adapter = pair
    result = merge(base, adapter, tmp_path / "out", qlora_base="dequantized")
    weights = load_file(base / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    error = delta = 0.0
    for key, a in factors.items():
        if "lora_A" in key:
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weight = weights[f"{module}.weight"]
            b = factors[key.replace("lora_A", "lora_B")]
            delta += float((2.0 * b @ a).square().sum())
            error += float((_through_nf4(weight).float() - weight.float()).square().sum())
    ratio = result.stats.quantization_ratio
    assert ratio == pytest.approx((error / delta) ** 0.5, rel=0.35)


def test_adapter_of_a_four_bit_base_is_noticed(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """The config names the quantized base, the original is given: said, with the way."""
    base, adapter = pair
    config = adapter / "adapter_config.json"
    text = config.read_text().replace(
        '"base_model_name_or_path": null', '"base_model_name_or_path": "org/tiny-bnb-4bit"'
    )
    assert "bnb-4bit" in text
    config.write_text(text)
    found = merge(base, adapter, tmp_path / "out").findings
    assert [finding.code for finding in found] == [Code.QLORA_BASE]
    silent = merge(base, adapter, tmp_path / "again", qlora_base="dequantized").findings
    assert Code.QLORA_BASE not in {finding.code for finding in silent}


def test_quantized_base_needs_no_round_trip(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """It already is what training saw."""
    base, adapter = pair
    weights = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    codes, scales, _ = functional.int8_vectorwise_quant(weights[name].half())
    weights[name] = codes
    weights[name.replace("weight", "SCB")] = scales
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = base / "config.json"
    entry = '{"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true},'
    config.write_text(config.read_text().replace("{", entry, 1))
    with pytest.raises(MismatchError) as caught:
        merge(base, adapter, tmp_path / "out", qlora_base="dequantized")
    assert caught.value.field == "--qlora-base"
