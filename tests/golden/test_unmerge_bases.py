"""Unmerge restores quantized and tied bases, and merges of several adapters, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from adaptool import merge, unmerge
from adaptool.model.options import Strength
from golden_cases import quietly
from small_pairs import (
    HIDDEN,
    LLAMA,
    VOCAB,
    config_of,
    llama_base,
    lora,
    save_adapter,
    save_base,
    write,
)
from tiny_models import build
from unmerging import lost

BITS = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    },
    "int8": {"load_in_8bit": True},
}
MODES = {"nf4": ("all", "touched", "keep"), "int8": ("all", "touched"), "fp8": ("all", "keep")}


def _model() -> LlamaForCausalLM:
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
    return LlamaForCausalLM(config).to(torch.bfloat16)


def _quantized(scheme: str, folder: Path) -> Path:
    """The model as a library stores it under `scheme`."""
    _model().save_pretrained(folder / "plain")
    if scheme in BITS:
        model = AutoModelForCausalLM.from_pretrained(
            folder / "plain",
            dtype=torch.bfloat16,
            quantization_config=BitsAndBytesConfig(**BITS[scheme]),
            device_map="cpu",
        )
        model.save_pretrained(folder / "base")
        return folder / "base"
    shutil.copytree(folder / "plain", folder / "base")
    tensors = load_file(folder / "base" / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].abs().max().float() / 448
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, folder / "base" / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "base" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": None}
    (folder / "base" / "config.json").write_text(json.dumps(config))
    return folder / "base"


def _trained(folder: Path) -> Path:
    peft = get_peft_model(
        _model(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    )
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    peft.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("scheme", "mode"), [(scheme, mode) for scheme, modes in MODES.items() for mode in modes]
)
def test_a_quantized_base_comes_back_packed(scheme: str, mode: str, tmp_path: Path) -> None:
    """Whatever was written of it, the codes, scales and config of the base are restored."""
    base = _quantized(scheme, tmp_path)
    adapter = _trained(tmp_path / "adapter")
    merged = merge(base, adapter, tmp_path / "merged", quantized=mode, reversible=True)
    result = unmerge(tmp_path / "merged", adapter, tmp_path / "out", exact=True)
    assert lost(base, tmp_path / "out") == []
    assert result.total == len(load_file(base / "model.safetensors"))
    said = [finding.message for finding in merged.findings if finding.code == "stored-whole"]
    assert said or mode == "keep"


def test_a_base_that_nf4_had_changed_comes_back(tmp_path: Path) -> None:
    """--qlora-base dequantized replaces every weight by what nf4 makes of it; unmerge undoes it."""
    _model().save_pretrained(tmp_path / "wide")
    adapter = _trained(tmp_path / "of-wide")
    merge(
        tmp_path / "wide",
        adapter,
        tmp_path / "merged",
        qlora_base="dequantized",
        reversible=True,
    )
    unmerge(tmp_path / "merged", adapter, tmp_path / "out", exact=True)
    assert lost(tmp_path / "wide", tmp_path / "out") == []


@pytest.mark.parametrize("tie", ["untie", "keep"])
def test_tied_weights_are_tied_again(tie: str, tmp_path: Path) -> None:
    """An adapter on the head unties it; the base has one tensor and its config says so."""
    tensors = llama_base()
    del tensors["lm_head.weight"]
    save_base(tmp_path / "base", tensors, {**LLAMA, "tie_word_embeddings": True}, "bfloat16")
    factors = lora("lm_head", VOCAB, HIDDEN, seed=5)
    save_adapter(tmp_path / "adapter", factors, config_of(target_modules=["lm_head"]))
    out = tmp_path / "merged"
    merge(tmp_path / "base", tmp_path / "adapter", out, tie=tie, reversible=True)
    assert ("lm_head.weight" in (out / "model.safetensors.index.json").read_text()) == (
        tie == "untie"
    )
    unmerge(out, tmp_path / "adapter", tmp_path / "out", exact=True)
    assert lost(tmp_path / "base", tmp_path / "out") == []


def test_several_adapters_come_apart_as_the_receipt_lists_them(tmp_path: Path) -> None:
    """Three adapters at their weights, one with whole modules, shards cut anew."""
    pair = write("lora", tmp_path / "one")
    other = write("modules-to-save", tmp_path / "two").adapter
    third = write("token-rows", tmp_path / "three").adapter
    merge(
        pair.base,
        pair.adapter,
        tmp_path / "merged",
        weight=0.7,
        add=[Strength(other, 0.5), third],
        max_shard_size=20_000,
        reversible=True,
    )
    out = tmp_path / "out"
    unmerge(tmp_path / "merged", pair.adapter, out, add=[other, third], exact=True)
    assert lost(pair.base, out) == []


def test_an_initialisation_that_changed_the_base_comes_apart(tmp_path: Path) -> None:
    """PiSSA with its initial adapter: two deltas, one of them taken away, both undone."""
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    with quietly():
        build("llama").save_pretrained(tmp_path / "base")
        adapted = get_peft_model(build("llama"), LoraConfig(init_lora_weights="pissa", **options))
        adapted.save_pretrained(tmp_path / "initial")
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        adapted.save_pretrained(tmp_path / "trained")
    base, trained, initial = (tmp_path / name for name in ("base", "trained", "initial"))
    merge(base, trained, tmp_path / "merged", init_adapter=initial, reversible=True)
    unmerge(tmp_path / "merged", trained, tmp_path / "out", init_adapter=initial, exact=True)
    assert lost(base, tmp_path / "out") == []


def test_a_single_file_base_comes_back_under_its_name(tmp_path: Path) -> None:
    """A base that is one file, without config or index."""
    pair = write("lora", tmp_path)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(pair.base.glob("*.safetensors")):
        tensors |= load_file(file)
    file = tmp_path / "whole.safetensors"
    save_file(tensors, file)
    merge(file, pair.adapter, tmp_path / "merged", reversible=True)
    unmerge(tmp_path / "merged", pair.adapter, tmp_path / "out", exact=True)
    assert (tmp_path / "out" / "whole.safetensors").read_bytes() == file.read_bytes()


def test_a_copy_of_the_base_beside_a_delta_comes_apart(tmp_path: Path) -> None:
    """One adapter changes the head, another carries the head as it was: that one is not used."""
    tensors = llama_base()
    save_base(tmp_path / "base", tensors, LLAMA, "float32")
    factors = lora("lm_head", VOCAB, HIDDEN, seed=5)
    save_adapter(tmp_path / "one", factors, config_of(target_modules=["lm_head"]))
    module = "model.layers.0.self_attn.q_proj"
    carried = {
        **lora(module, HIDDEN, HIDDEN, seed=9),
        "base_model.model.lm_head.weight": tensors["lm_head.weight"],
    }
    options = config_of(target_modules=["q_proj"], modules_to_save=["lm_head"])
    options |= {"layers_to_transform": [0]}
    save_adapter(tmp_path / "two", carried, options)
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    merge(tmp_path / "base", one, tmp_path / "merged", add=[two], reversible=True)
    unmerge(tmp_path / "merged", one, out, add=[two], exact=True)
    assert lost(tmp_path / "base", out) == []
