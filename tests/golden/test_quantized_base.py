"""Merges into bases that bitsandbytes quantized: all in 16 bit, or only what moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes import functional
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from adaptool import MismatchError, merge, verify
from adaptool.findings import Code
from adaptool.store.checkpoint import open_checkpoint

TOKENS = torch.arange(24)[None]
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
}
INT8 = {"load_in_8bit": True}
SCHEMES = {"nf4": NF4, "int8": INT8}


def _plain(folder: Path) -> LlamaForCausalLM:
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
    model.save_pretrained(folder)
    return model


@pytest.fixture(params=sorted(SCHEMES))
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny Llama as transformers saves it under one of bitsandbytes' schemes."""
    _plain(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain",
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(**SCHEMES[request.param]),
        device_map="cpu",
    )
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA on one of q/k/v and on down_proj of the plain model."""
    peft = get_peft_model(
        _plain(tmp_path / "again"),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
    )
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    peft.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def _is_opened(name: str) -> bool:
    """Touched modules, and those that runtimes fuse with one."""
    return any(f".{module}." in name for module in ("q_proj", "k_proj", "v_proj", "down_proj"))


def _logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu")
        return model(TOKENS).logits.float()


def _dequantized(base: Path) -> dict[str, torch.Tensor]:
    """The library's own dequantization of the base, before it is rounded to the model's dtype."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, device_map="cpu")
    weights = dict(model.dequantize().state_dict())
    stored = _tensors(base)
    for name in stored:
        if name.endswith(".SCB"):
            codes = name.removesuffix("SCB") + "weight"
            weights[codes] = functional.int8_vectorwise_dequant(stored[codes], stored[name])
    return weights


def test_all_is_decode_merge_round(tmp_path: Path, base: Path, adapter: Path) -> None:
    """Every weight is the library's decoded one; touched ones have the delta added in float64."""
    merge(base, adapter, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    factors = load_file(adapter / "adapter_model.safetensors")
    expected = _dequantized(base)
    found = _tensors(tmp_path / "out")
    assert set(found) == set(expected)
    for name, weight in expected.items():
        module = name.removesuffix(".weight")
        key = f"base_model.model.{module}.lora_A.weight"
        if key in factors:
            b = factors[key.replace("lora_A", "lora_B")].double()
            value = weight.double() + 2.0 * (b @ factors[key].double())
            step = torch.finfo(torch.bfloat16).eps * value.abs().clamp(min=1e-30)
            assert bool(((found[name].double() - value).abs() <= step).all())
        else:
            assert torch.equal(found[name], weight.to(torch.bfloat16))
    assert verify(base, adapter, tmp_path / "out").ok


def test_touched_leaves_every_other_byte_and_loads_the_same(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    """q/k/v become plain together; what is not touched keeps its stored bytes."""
    merge(base, adapter, tmp_path / "all")
    merge(base, adapter, tmp_path / "touched", quantized="touched")
    before, after = _tensors(base), _tensors(tmp_path / "touched")
    plain = _tensors(tmp_path / "all")
    for name, value in after.items():
        if _is_opened(name):
            assert torch.equal(value, plain[name])
        else:
            assert torch.equal(value, before[name])
    for layer in range(2):
        assert f"model.layers.{layer}.self_attn.k_proj.weight" in after
    # The plain modules compute alike; the others are decoded inside the loader's own kernels.
    expected, found = _logits(tmp_path / "all"), _logits(tmp_path / "touched")
    assert float((found - expected).norm() / expected.norm()) < 0.03
    assert verify(base, adapter, tmp_path / "touched").ok


def test_touched_keeps_the_order_of_the_base(tmp_path: Path, base: Path, adapter: Path) -> None:
    """Stored parts that stay keep their order in the shard."""
    merge(base, adapter, tmp_path / "touched", quantized="touched")
    with open_checkpoint(base) as old, open_checkpoint(tmp_path / "touched") as new:
        kept = [name for name in new.tensors if not _is_opened(name)]
        assert kept == [name for name in old.tensors if not _is_opened(name)]


@pytest.mark.parametrize("base", ["int8"], indirect=True)
def test_keep_is_refused_with_the_way_round(tmp_path: Path, base: Path, adapter: Path) -> None:
    """int8 is not written again: the scheme and the reason are named, and so is `touched`."""
    with pytest.raises(MismatchError) as caught:
        merge(base, adapter, tmp_path / "out", quantized="keep")
    assert caught.value.code is Code.UNSUPPORTED
    assert "bitsandbytes int8" in caught.value.message
    assert "touched" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_stacked_experts_become_plain_together(tmp_path: Path) -> None:
    """gpt-oss in MXFP4: a delta on one stacked parameter opens the other of the same module."""
    torch.manual_seed(0)
    plain = GptOssForCausalLM(
        GptOssConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            num_local_experts=2,
            num_experts_per_tok=1,
            vocab_size=64,
        )
    ).to(torch.bfloat16)
    plain.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    experts = "model.layers.0.mlp.experts"
    for name in ("gate_up_proj", "down_proj"):
        count, inner, out = tensors.pop(f"{experts}.{name}").shape
        blocks = torch.randint(0, 256, (count, out, inner // 32, 16), dtype=torch.uint8)
        tensors[f"{experts}.{name}_blocks"] = blocks
        scales = torch.randint(118, 124, (count, out, inner // 32), dtype=torch.uint8)
        tensors[f"{experts}.{name}_scales"] = scales
    save_file(tensors, file, metadata={"format": "pt"})
    config = tmp_path / "base" / "config.json"
    body = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    config.write_text(json.dumps(body))
    target = "mlp.experts.down_proj"
    peft = get_peft_model(plain, LoraConfig(r=2, target_modules=[], target_parameters=[target]))
    peft.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", quantized="touched")
    found = _tensors(tmp_path / "out")
    assert {f"{experts}.gate_up_proj", f"{experts}.down_proj"} <= set(found)
    assert not any(name.endswith(("_blocks", "_scales")) for name in found)
