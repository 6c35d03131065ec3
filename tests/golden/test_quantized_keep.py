"""`--quantized keep`: merged weights in the base's own format, and what that kept of a delta."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from adaptool import MismatchError, merge, verify
from adaptool.api import output
from adaptool.engine.write import write_model
from adaptool.findings import Code

TOKENS = torch.arange(24)[None]
Tensors = dict[str, torch.Tensor]
TOUCHED = ("q_proj", "down_proj")


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


def _tensors(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def _rewritten(
    folder: Path,
    quantization: Mapping[str, Any],
    store: Callable[[str, torch.Tensor], Tensors],
    wanted: str = "_proj.",
) -> None:
    """The plain model of `folder` with the weights that have `wanted` in their names stored so."""
    tensors = _tensors(folder)
    for name in [name for name in tensors if wanted in f"{name}."]:
        tensors |= store(name, tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    body = json.loads(file.read_text()) | {"quantization_config": quantization}
    file.write_text(json.dumps(body))


def _nf4(folder: Path, *, double: bool) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config, device_map="cpu"
    )
    model.save_pretrained(folder)


def _nf4_again(double: bool) -> Callable[[str, torch.Tensor], Tensors]:
    def again(name: str, weight: torch.Tensor) -> Tensors:
        codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
        parts = state.as_dict(packed=True)
        return {name: codes} | {f"{name}.{part}": value for part, value in parts.items()}

    return again


def _fp8_again(quantization: Mapping[str, Any]) -> Callable[[str, torch.Tensor], Tensors]:
    library = Fp8Quantize(SimpleNamespace(quantization_config=FineGrainedFP8Config(**quantization)))
    return lambda name, weight: library.convert({name: weight})


def _channels_again(name: str, weight: torch.Tensor) -> Tensors:
    """compressed-tensors' format, written from its description: one 16-bit scale an output."""
    largest = weight.abs().amax(dim=1, keepdim=True).float()
    scale = (1.0 / (448.0 / largest)).bfloat16()
    codes = (weight.float() * (1.0 / scale.float())).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale": scale}


BLOCKS = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
WHOLE = {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "dynamic"}
CHANNELS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        }
    },
}
AGAIN: dict[str, Callable[[str, torch.Tensor], Tensors]] = {
    "nf4": _nf4_again(double=False),
    "nf4 double": _nf4_again(double=True),
    "fp8 blocks": _fp8_again(BLOCKS),
    "fp8 whole": _fp8_again(WHOLE),
    "fp8 channels": _channels_again,
}
QUANTIZATION = {"fp8 blocks": BLOCKS, "fp8 whole": WHOLE, "fp8 channels": CHANNELS}


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Where the library would compile a kernel, it runs it as written."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _base(folder: Path, kind: str) -> Path:
    """A tiny Llama whose blocks are stored as `kind`."""
    _plain(folder)
    if kind.startswith("nf4"):
        _nf4(folder, double=kind.endswith("double"))
    else:
        _rewritten(folder, QUANTIZATION[kind], AGAIN[kind])
    return folder


def _adapter(folder: Path, strength: float = 0.1, **how: Any) -> Path:
    """A LoRA on one of q/k/v and on down_proj, whose delta is about `strength` times the weights'.

    Weights of this model are normal with a deviation of 0.02.
    """
    model = _plain(folder / "of")
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=[*TOUCHED], **how))
    torch.manual_seed(1)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            deviation = 1.0 if "lora_A" in name else strength * 0.02 / 2
            torch.nn.init.normal_(parameter, std=deviation)
    peft.save_pretrained(folder)
    return folder


def _logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu")
        return model(TOKENS).logits.float()


def _is_touched(name: str) -> bool:
    return any(f".{module}." in name for module in TOUCHED)


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.dtype == theirs.dtype and torch.equal(
        ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", sorted(AGAIN))
def test_keep_is_the_library_quantizing_the_merged_weight(
    tmp_path: Path, kind: str, dora: bool
) -> None:
    """The library's own bytes of what `all` writes; every other byte is the base's."""
    base = _base(tmp_path / "base", kind)
    adapter = _adapter(tmp_path / "adapter", strength=3.0, use_dora=dora)
    merge(base, adapter, tmp_path / "all")
    merge(base, adapter, tmp_path / "keep", quantized="keep")
    plain, before, after = map(_tensors, (tmp_path / "all", base, tmp_path / "keep"))
    assert list(after) == list(before)
    expected = dict(before)
    for name in plain:
        if _is_touched(name):
            expected |= AGAIN[kind](name, plain[name])
    for name, value in after.items():
        if ".quant_state." in name and _is_touched(name):
            found = bytes(value.numpy()).rstrip(b" ")
            assert found == bytes(expected[name].numpy())
        else:
            assert _same(value, expected[name]), name
    changed = {name for name in after if not _same(after[name], before[name])}
    assert {name for name in changed if name.endswith("weight")} == set(filter(_is_touched, plain))
    config = (tmp_path / "keep" / "config.json").read_bytes()
    assert config == (base / "config.json").read_bytes()
    assert verify(base, adapter, tmp_path / "keep", exact=True).ok


@pytest.mark.parametrize("kind", sorted(AGAIN))
def test_keep_loads_in_transformers(tmp_path: Path, kind: str) -> None:
    """The forward is that of the merged model but for the format's rounding.

    On a CPU transformers decodes FP8 as it loads; compressed-tensors decompresses itself.
    """
    base, adapter = _base(tmp_path / "base", kind), _adapter(tmp_path / "adapter", strength=3.0)
    merge(base, adapter, tmp_path / "all")
    merge(base, adapter, tmp_path / "keep", quantized="keep")
    merged, kept, unmerged = map(_logits, (tmp_path / "all", tmp_path / "keep", base))
    error = float((kept - merged).norm())
    assert error < 0.25 * float((unmerged - merged).norm())


@pytest.mark.parametrize("kind", [kind for kind in sorted(AGAIN) if "fp8" in kind])
def test_touched_loads_with_the_same_forward_as_all(tmp_path: Path, kind: str) -> None:
    """Opened modules equal `all`'s, every other byte is the base's, and transformers agrees."""
    base, adapter = _base(tmp_path / "base", kind), _adapter(tmp_path / "adapter")
    merge(base, adapter, tmp_path / "all")
    merge(base, adapter, tmp_path / "touched", quantized="touched")
    before, after, plain = map(_tensors, (base, tmp_path / "touched", tmp_path / "all"))
    opened = ("q_proj", "k_proj", "v_proj", "down_proj")
    for name, value in after.items():
        is_open = any(f".{module}." in name for module in opened)
        assert _same(value, (plain if is_open else before)[name]), name
    assert any(value.dtype == torch.float8_e4m3fn for value in after.values())
    assert torch.equal(_logits(tmp_path / "touched"), _logits(tmp_path / "all"))
    assert verify(base, adapter, tmp_path / "touched", exact=True).ok


@pytest.mark.parametrize("kind", ["nf4 double", "fp8 blocks"])
def test_a_delta_that_rounding_swallows_is_not_published(tmp_path: Path, kind: str) -> None:
    """Below half of the delta: the worst tensor by name, and nothing at OUT or beside it."""
    base = _base(tmp_path / "base", kind)
    adapter = _adapter(tmp_path / "adapter", strength=0.01)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(MismatchError) as caught:
        merge(base, adapter, tmp_path / "out", quantized="keep")
    assert caught.value.code is Code.DELTA_LOST
    assert "--allow-lossy" in str(caught.value.hint)
    assert sorted(tmp_path.iterdir()) == there
    result = merge(base, adapter, tmp_path / "out", quantized="keep", allow_lossy=True)
    shares = result.stats.recoded
    assert len(shares) == 4
    worst = min(shares, key=lambda name: shares[name] or 0.0)
    assert caught.value.tensor == worst
    assert f"{shares[worst]:.1%}" in caught.value.message
    (warning,) = (finding for finding in result.findings if finding.code is Code.DELTA_LOST)
    assert warning.tensor == worst
    receipt = json.loads((tmp_path / "out" / "adaptool.json").read_text())
    assert receipt["stats"]["recoded"] == dict(shares)
    assert receipt["options"]["allow_lossy"] is True
    assert verify(base, adapter, tmp_path / "out", exact=True).ok


@pytest.mark.parametrize("kind", ["nf4", "nf4 double", "fp8 blocks"])
def test_retained_is_what_the_decoded_weights_say(tmp_path: Path, kind: str) -> None:
    """<decode(new) - decode(old), delta> / |delta|^2 in float64, from the libraries' decoding."""
    base, adapter = _base(tmp_path / "base", kind), _adapter(tmp_path / "adapter", strength=1.0)
    result = merge(base, adapter, tmp_path / "keep", quantized="keep", allow_lossy=True)
    for folder in (base, tmp_path / "keep"):
        # Weight 0 is the base's values: `all` then only decodes.
        merge(folder, adapter, tmp_path / f"plain {folder.name}", weight=0.0)
    before, after = _tensors(tmp_path / "plain base"), _tensors(tmp_path / "plain keep")
    factors = load_file(adapter / "adapter_model.safetensors")
    assert len(result.stats.recoded) == 4
    for name, share in result.stats.recoded.items():
        key = f"base_model.model.{name.removesuffix('weight')}"
        delta = factors[f"{key}lora_B.weight"].double() @ factors[f"{key}lora_A.weight"].double()
        moved = after[name].double() - before[name].double()
        assert share == pytest.approx(float((moved * delta).sum() / delta.square().sum()), rel=1e-5)


def test_bytes_do_not_depend_on_tiles_or_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do the figures in the receipt."""
    adapter = _adapter(tmp_path / "adapter", strength=2.0)

    def in_small_tiles(*given: Any, **how: Any) -> Any:
        return write_model(*given, **how, tile_elements=300)

    for kind in ("nf4 double", "fp8 blocks"):
        base, one, other = (tmp_path / f"{kind} {part}" for part in ("base", "one", "other"))
        _base(base, kind)
        merge(base, adapter, one, quantized="keep", threads=1)
        with monkeypatch.context() as patch:
            patch.setattr(output, "write_model", in_small_tiles)
            merge(base, adapter, other, quantized="keep", threads=3)
        for name in ("model.safetensors", "adaptool.json"):
            assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_module_trained_whole_is_stored_in_the_format(tmp_path: Path) -> None:
    """modules_to_save on a packed layer: its own values are what the library is given."""
    base = _base(tmp_path / "base", "fp8 blocks")
    adapter = _adapter(tmp_path / "adapter", strength=3.0, modules_to_save=["up_proj"])
    merge(base, adapter, tmp_path / "keep", quantized="keep")
    after = _tensors(tmp_path / "keep")
    trained = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    value = trained[f"base_model.model.{name}"].bfloat16()
    for part, expected in AGAIN["fp8 blocks"](name, value).items():
        assert _same(after[part], expected)


def test_stacked_experts_are_stored_in_the_format(tmp_path: Path) -> None:
    """One parameter of several matrices, each with a grid of scales of its own."""
    torch.manual_seed(0)
    model = GptOssForCausalLM(
        GptOssConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            num_local_experts=3,
            num_experts_per_tok=1,
            vocab_size=64,
        )
    ).to(torch.bfloat16)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    name = "model.layers.0.mlp.experts.down_proj"
    again = AGAIN["fp8 blocks"]
    _rewritten(base, BLOCKS, again, f"{name}.")
    before = _tensors(base)
    config = LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    peft = get_peft_model(model, config)
    for key, parameter in peft.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    peft.save_pretrained(adapter)
    merge(base, adapter, tmp_path / "all")
    merge(base, adapter, tmp_path / "keep", quantized="keep")
    after, plain = _tensors(tmp_path / "keep"), _tensors(tmp_path / "all")
    expected = again(name, plain[name])
    assert set(expected) == {name, f"{name}_scale_inv"}
    assert all(_same(after[part], expected[part]) for part in expected)
    assert not _same(after[name], before[name])
    assert verify(base, adapter, tmp_path / "keep", exact=True).ok


def test_another_dtype_leaves_stored_parts_alone(tmp_path: Path) -> None:
    """--dtype is for plain tensors: scales keep the dtype that the scheme gives them."""
    base = _base(tmp_path / "base", "fp8 blocks")
    adapter = _adapter(tmp_path / "adapter", strength=3.0)
    before = _tensors(base)
    for mode in ("keep", "touched"):
        merge(base, adapter, tmp_path / mode, quantized=mode, dtype="float16")
        after = _tensors(tmp_path / mode)
        assert after["model.norm.weight"].dtype == torch.float16
        scale = "model.layers.0.mlp.gate_proj.weight_scale_inv"
        assert _same(after[scale], before[scale])


@pytest.mark.parametrize("mode", ["keep", "touched"])
def test_replicated_layers_are_refused(tmp_path: Path, mode: str) -> None:
    """A layer in another's place is not where its packed parts are."""
    base = _base(tmp_path / "base", "fp8 blocks")
    ranges = [[0, 2], [0, 2]]
    adapter = _adapter(tmp_path / "adapter", layer_replication=ranges)
    with pytest.raises(MismatchError) as caught:
        merge(base, adapter, tmp_path / "out", quantized=mode)
    assert caught.value.code is Code.UNSUPPORTED
    assert "all" in str(caught.value.hint)
