"""GGUF LoRA: the gguf package reads it and names it, llama.cpp's rules are written down again.

The rules, of llama.cpp: the scale is alpha / (last axis of lora_b), 1 where alpha is 0; the
embedding's lora_a stands transposed; llama's q and k rows are permuted head by head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import adaptool
import gguf_files
import plain_adapters as plain
from adaptool.errors import InputError, InternalError, MismatchError
from adaptool.findings import Code
from adaptool.layouts import gguf_encode
from adaptool.names.gguf_names import ARCHITECTURES, architecture_of, gguf_name, module_path
from exact_numbers import drawn

Array = np.ndarray[Any, np.dtype[Any]]
FUSED = {
    "self_attn.qkv_proj": (48, plain.HIDDEN),
    "self_attn.o_proj": (plain.HIDDEN, plain.HIDDEN),
    "mlp.gate_up_proj": (2 * plain.INNER, plain.HIDDEN),
    "mlp.down_proj": (plain.HIDDEN, plain.INNER),
}
DENSE = {**plain.ATTENTION, **plain.MLP}
MODELS: Mapping[str, tuple[str, Mapping[str, tuple[int, int]]]] = {
    "llama": ("llama", DENSE),
    "mistral": ("llama", DENSE),
    "qwen2": ("qwen2", DENSE),
    "qwen3": ("qwen3", DENSE),
    "qwen3_moe": ("qwen3moe", {**plain.ATTENTION, **plain.experts()}),
    "gemma2": ("gemma2", DENSE),
    "gemma3_text": ("gemma3", DENSE),
    "phi3": ("phi3", FUSED),
}


def _permuted(delta: Array, heads: int) -> Array:
    """llama.cpp's LlamaModel.permute, of the weight as a whole."""
    rows = delta.shape[0]
    turned = delta.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2)
    return turned.reshape(delta.shape)


def _updates(path: Path) -> dict[str, Array]:
    """What llama.cpp adds to each tensor of the model, in float64."""
    fields, tensors = gguf_files.read(path)
    alpha = fields.get("adapter.lora.alpha", 0.0)
    found = {}
    for key, a in tensors.items():
        if key.endswith(".lora_a"):
            name = key.removesuffix(".lora_a")
            b = tensors[f"{name}.lora_b"].astype("float64")
            scale = alpha / b.shape[-1] if alpha else 1.0
            if name == "token_embd.weight":
                found[name] = scale * (a.astype("float64") @ b.T)
            else:
                found[name] = scale * (b @ a.astype("float64"))
    return found


def _expected(deltas: Mapping[str, Array], arch: str) -> dict[str, Array]:
    """PEFT's updates as tensors of the GGUF model, named by the gguf package."""
    number = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(number, 4)
    found: dict[str, Any] = {}
    for module, delta in deltas.items():
        parts = module.split(".")
        expert = int(parts.pop(-2)) if "experts" in parts else None
        name = names.get_name(".".join(parts))
        assert name is not None
        if arch == "llama" and module.endswith("q_proj"):
            delta = _permuted(delta, plain.HEADS)  # noqa: PLW2901
        if arch == "llama" and module.endswith("k_proj"):
            delta = _permuted(delta, plain.KEY_HEADS)  # noqa: PLW2901
        if expert is None:
            found[f"{name}.weight"] = delta
        else:
            found.setdefault(f"{name}.weight", {})[expert] = delta
    return {
        name: np.stack([each[place] for place in sorted(each)]) if isinstance(each, dict) else each
        for name, each in found.items()
    }


def _convert(adapter: Path, out: Path, to: str, **options: Any) -> Path:
    adaptool.convert(adapter, out, to=to, **options)
    return out


@pytest.mark.parametrize("model_type", MODELS)
def test_llama_cpp_computes_the_same_update(tmp_path: Path, model_type: str) -> None:
    """Names, order of rows, stacks and scale; and back with every bit."""
    arch, inside = MODELS[model_type]
    peft = plain.write(tmp_path / "a", plain.layered(inside), embedding=True)
    base = plain.base(tmp_path / "base", {"model_type": model_type})
    packed = _convert(peft, tmp_path / "x.gguf", "gguf", base=base)
    fields, _ = gguf_files.read(packed)
    assert fields["general.architecture"] == arch
    plain.same(_expected(plain.deltas(peft), arch), _updates(packed))
    back = _convert(packed, tmp_path / "b", "peft", base=base)
    assert plain.stored(back) == plain.stored(peft)


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"v_proj": 3}, "rank_pattern": {"mlp.up_proj": 6}},
        {"use_rslora": True, "rank_pattern": {"mlp.up_proj": 6, "o_proj": 3}},
    ],
)
def test_rslora_and_patterns_are_folded(tmp_path: Path, config: dict[str, Any]) -> None:
    """llama.cpp knows one alpha, over each tensor's own rank."""
    peft = plain.write(tmp_path / "a", plain.layered(DENSE), config=config)
    base = plain.base(tmp_path / "base")
    packed = _convert(peft, tmp_path / "x.gguf", "gguf", base=base)
    wanted, found = _expected(plain.deltas(peft), "llama"), _updates(packed)
    plain.same(wanted, found, 2e-7)
    back = _convert(packed, tmp_path / "b", "peft", base=base)
    plain.same(plain.deltas(peft), plain.deltas(back), 2e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_factors_stay_so(tmp_path: Path, dtype: str) -> None:
    """Nothing is scaled, so nothing is rounded."""
    peft = plain.write(tmp_path / "a", plain.layered(DENSE), dtype=dtype)
    base = plain.base(tmp_path / "base")
    packed = _convert(peft, tmp_path / "x.gguf", "gguf", base=base)
    kind = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    assert {each.tensor_type.name for each in gguf.GGUFReader(packed).tensors} == {kind}
    back = _convert(packed, tmp_path / "b", "peft", base=base)
    assert plain.stored(back) == plain.stored(peft)


def _packed(path: Path, name: str = "blk.2.ffn_up", **options: Any) -> Path:
    tensors = {f"{name}.weight.lora_a": drawn(1, 2, 8), f"{name}.weight.lora_b": drawn(2, 8, 2)}
    return gguf_files.write(path, tensors, **options)


@pytest.mark.parametrize(("alpha", "scaling"), [(16.0, 8.0), (0.0, 1.0), (None, 1.0)])
def test_alpha_nought_is_scale_one(tmp_path: Path, alpha: float | None, scaling: float) -> None:
    """As llama.cpp's get_scale reads it."""
    found = adaptool.inspect(_packed(tmp_path / "x.gguf", alpha=alpha))
    assert found.layout == "gguf"
    assert found.scaling == {"min": scaling, "max": scaling}
    assert [row.module for row in found.modules] == ["model.layers.2.mlp.up_proj"]


def test_q_and_k_of_llama_need_the_base(tmp_path: Path) -> None:
    """Exit 4 with --base as the hint; a qwen needs none."""
    with pytest.raises(MismatchError) as caught:
        adaptool.inspect(_packed(tmp_path / "x.gguf", "blk.0.attn_q"))
    assert caught.value.hint is not None
    assert "--base" in caught.value.hint
    assert adaptool.inspect(_packed(tmp_path / "y.gguf", "blk.0.attn_q", arch="qwen2")).modules


def test_inspect_and_validate_take_the_heads_from_their_base(tmp_path: Path) -> None:
    """--base is enough for both."""
    peft = plain.write(tmp_path / "a", plain.layered(plain.ATTENTION))
    base = _model(tmp_path / "base")
    packed = _convert(peft, tmp_path / "x.gguf", "gguf", base=base)
    assert len(adaptool.inspect(packed, base=base).modules) == 8
    assert adaptool.validate(packed, base=base, target="llamacpp").ok
    assert not adaptool.validate(packed).ok
    assert adaptool.validate(packed, target="llamacpp").ok


def test_what_lies_between_tensors_is_zeros(tmp_path: Path) -> None:
    """Padding up to the alignment of 32, and behind the last tensor."""
    peft = plain.write(tmp_path / "a", plain.layered({"mlp.up_proj": (5, 7)}), rank=1)
    packed = _convert(peft, tmp_path / "x.gguf", "gguf", base=plain.base(tmp_path / "base"))
    content = bytearray(packed.read_bytes())
    assert not len(content) % 32
    reader = gguf.GGUFReader(packed)
    start = min(each.data_offset for each in reader.tensors)
    for each in reader.tensors:
        content[each.data_offset : each.data_offset + each.n_bytes] = bytes(each.n_bytes)
    assert not any(content[start:])


def test_a_merge_takes_the_heads_from_its_base(tmp_path: Path) -> None:
    """The GGUF of an adapter merges to the same bytes as the adapter."""
    peft = plain.write(tmp_path / "a", plain.layered(plain.ATTENTION))
    base = _model(tmp_path / "base")
    packed = _convert(peft, tmp_path / "x.gguf", "gguf", base=base)
    for adapter, out in ((peft, "one"), (packed, "two")):
        adaptool.merge(base, adapter, tmp_path / out)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (
        tmp_path / "two/model.safetensors"
    ).read_bytes()


def _model(folder: Path) -> Path:
    from safetensors.numpy import save_file

    plain.base(folder)
    weights = {
        f"{module}.weight": drawn(place, *shape)
        for place, (module, shape) in enumerate(plain.layered(plain.ATTENTION).items())
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def test_without_a_base_there_are_no_names(tmp_path: Path) -> None:
    """Exit 4, and the architectures that are known."""
    peft = plain.write(tmp_path / "a", plain.layered(DENSE))
    with pytest.raises(MismatchError) as caught:
        adaptool.convert(peft, tmp_path / "x.gguf", to="gguf")
    assert "llama" in str(caught.value.hint)
    strange = plain.base(tmp_path / "base", {"model_type": "bloom"})
    with pytest.raises(MismatchError):
        adaptool.convert(peft, tmp_path / "x.gguf", to="gguf", base=strange)


def test_a_module_without_a_name_is_listed(tmp_path: Path) -> None:
    """Nothing is left out in silence."""
    peft = plain.write(tmp_path / "a", plain.layered({"self_attn.strange": (4, 4)}))
    with pytest.raises(MismatchError, match=r"layers\.1\.self_attn\.strange") as caught:
        adaptool.convert(peft, tmp_path / "x.gguf", to="gguf", base=plain.base(tmp_path / "base"))
    assert caught.value.code is Code.LAYOUT_CANNOT_HOLD


def test_dora_is_refused_or_allowed_to_be_lost(tmp_path: Path) -> None:
    """llama.cpp has no magnitudes."""
    peft = plain.write(tmp_path / "a", plain.layered(plain.MLP), magnitudes=True)
    base = plain.base(tmp_path / "base")
    with pytest.raises(MismatchError, match="DoRA"):
        adaptool.convert(peft, tmp_path / "x.gguf", to="gguf", base=base)
    adaptool.convert(
        peft, tmp_path / "x.gguf", to="gguf", base=base, allow_drop=["*magnitude_vector"]
    )
    plain.same(_expected(plain.deltas(peft), "llama"), _updates(tmp_path / "x.gguf"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"kind": "model"}, MismatchError),
        ({"arch": "rwkv6"}, MismatchError),
        ({"alpha": float("nan")}, InputError),
        ({"name": "blk.0.attn_strange"}, MismatchError),
        ({"name": "blk.0.attn_norm"}, MismatchError),
    ],
)
def test_what_is_no_adapter_known_here_is_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    """A model, another architecture, no number, no such tensor."""
    with pytest.raises(error):
        adaptool.inspect(_packed(tmp_path / "x.gguf", **options))


def test_norms_are_lost_only_where_allowed(tmp_path: Path) -> None:
    """llama.cpp passes over them; here it takes --allow-drop."""
    tensors = {
        "blk.0.ffn_up.weight.lora_a": drawn(1, 2, 8),
        "blk.0.ffn_up.weight.lora_b": drawn(2, 8, 2),
        "blk.0.attn_norm.weight": drawn(3, 8),
    }
    path = gguf_files.write(tmp_path / "x.gguf", tensors)
    with pytest.raises(InputError, match="attn_norm"):
        adaptool.convert(path, tmp_path / "p", to="peft")
    adaptool.convert(path, tmp_path / "p", to="peft", allow_drop=["*_norm.weight"])


def test_half_a_pair_is_named(tmp_path: Path) -> None:
    """llama.cpp says `missing one component`."""
    path = gguf_files.write(tmp_path / "x.gguf", {"blk.0.ffn_up.weight.lora_a": drawn(1, 2, 8)})
    with pytest.raises(InputError) as caught:
        adaptool.inspect(path)
    assert caught.value.code is Code.FACTOR_MISSING


def test_a_directory_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    """As Ollama and LM Studio keep it."""
    (tmp_path / "d").mkdir()
    _packed(tmp_path / "d" / "adapter.gguf")
    assert adaptool.inspect(tmp_path / "d").layout == "gguf"


def test_a_resized_file_keeps_its_architecture(tmp_path: Path) -> None:
    """GGUF in, GGUF out."""
    adaptool.resize(_packed(tmp_path / "x.gguf"), tmp_path / "y.gguf", rank=1)
    fields, tensors = gguf_files.read(tmp_path / "y.gguf")
    assert fields["general.architecture"] == "llama"
    assert tensors["blk.2.ffn_up.weight.lora_b"].shape == (8, 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_name_is_the_packages(arch: str) -> None:
    """tensor_mapping.py gives each module the name that stands in our table."""
    number = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(number, 9)
    architecture = ARCHITECTURES[arch]
    for path, name in architecture.inside.items():
        module = f"{architecture.layers}.7.{path}"
        assert names.get_name(module.replace(".language_model", "")) == f"blk.7.{name}"
        expert = 3 if ".experts." in path else None
        back = module_path(architecture, f"blk.7.{name}", expert)
        assert back is not None
        assert gguf_name(architecture, back) == (f"blk.7.{name}", expert)
    for path in architecture.outside:
        found = gguf_name(architecture, path)
        assert found is not None
        known = names.get_name(path.replace(".language_model", ""))
        assert known in (found[0], None)  # gemma's head is its embedding


def test_the_model_types_are_known() -> None:
    """Text configs inside, and nothing made up for a stranger."""
    inner = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    found = architecture_of(inner)
    assert found is not None
    assert found.name == "gemma3"
    assert architecture_of({"model_type": "t5"}) is None
    assert architecture_of(None) is None


@pytest.mark.parametrize("spoilt", ["alpha", "names"])
def test_what_llama_cpp_would_read_otherwise_is_never_on_disk(
    spoilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong alpha, or a tensor of another projection, is found before the file is made."""
    peft = plain.write(tmp_path / "a", plain.layered(plain.ATTENTION))
    fields, name = gguf_encode._fields, gguf_encode.gguf_name

    def other_alpha(*given: Any) -> dict[str, Any]:
        return {**fields(*given), "adapter.lora.alpha": 3.0}

    def other_name(architecture: Any, module: str) -> tuple[str, int | None] | None:
        return name(architecture, module.replace("v_proj", "k_proj"))

    if spoilt == "alpha":
        monkeypatch.setattr(gguf_encode, "_fields", other_alpha)
    else:
        monkeypatch.setattr(gguf_encode, "gguf_name", other_name)
    with pytest.raises((InternalError, MismatchError)):
        _convert(peft, tmp_path / "x.gguf", "gguf", base=_model(tmp_path / "base"))
    assert not (tmp_path / "x.gguf").exists()
