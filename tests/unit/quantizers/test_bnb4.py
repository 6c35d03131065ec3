"""NF4 and FP4 against bitsandbytes on this CPU, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import QuantState, create_dynamic_map, dequantize_4bit, quantize_4bit
from bitsandbytes.functional import get_4bit_type as library_table
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed
from adaptool.quantizers import bnb4, four_bit_encoding
from adaptool.quantizers.codebooks import FOUR_BIT, dynamic_codes, dynamic_table
from adaptool.store.checkpoint import open_checkpoint
from adaptool.store.tensors import TensorRef

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, TensorRef]]
Decode = Callable[..., torch.Tensor]
Tensors = dict[str, torch.Tensor]

CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True, "model_type": "llama"}
STATE = "w.quant_state.bitsandbytes__nf4"
STORAGES = ["uint8", "int8", "float16", "bfloat16", "float32", "float64"]


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Where the library would compile a kernel, it runs it as written."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _stored(codes: torch.Tensor, state: QuantState, name: str = "w") -> Tensors:
    parts = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {name: codes, **parts}


def _quantized(weight: torch.Tensor, **how: Any) -> tuple[Tensors, QuantState]:
    how = {"quant_type": "nf4", "blocksize": 64} | how
    codes, state = quantize_4bit(weight, **how)
    return _stored(codes, state), state


def _oracle(codes: torch.Tensor, state: QuantState) -> torch.Tensor:
    """The library's decoding of the flat weight.

    As one row, because its AVX-512 kernel takes the wrong scales where blocks straddle rows.
    FP4's code 8 is 0 in the table that its other kernels use, and -0 in the one for processors
    without AVX-512: both are 0 here.
    """
    shape, state.shape = state.shape, torch.Size([1, state.shape.numel()])
    decoded = dequantize_4bit(codes, state).reshape(shape)
    if state.quant_type == "fp4":
        decoded += 0.0
    state.shape = shape
    return decoded.reshape(-1, shape[-1])


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def _only(found: Iterator[Packed]) -> Packed:
    (packed,) = found
    return packed


def _packed(store: Store, tensors: Tensors) -> Packed:
    settings = bnb4.settings(CONFIG)
    assert settings is not None
    return _only(bnb4.packed(store(tensors), settings))


def _assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    pattern = torch.int32 if ours.dtype == torch.float32 else torch.int16
    assert torch.equal(ours.contiguous().view(pattern), theirs.contiguous().view(pattern))


@pytest.mark.parametrize("blocksize", [32, 64, 4096])
@pytest.mark.parametrize(
    "shape", [(96, 128), (7, 96), (3, 5), (5, 64, 48), (1, 1), (130,)], ids=str
)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_decodes_as_the_library(
    store: Store,
    decode: Decode,
    *,
    dtype: torch.dtype,
    kind: str,
    double: bool,
    shape: tuple[int, ...],
    blocksize: int,
) -> None:
    """Any type, nesting, block size and shape, blocks that straddle rows and ragged ends."""
    weight = _random(*shape, dtype=dtype)
    how = {"quant_type": kind, "compress_statistics": double, "blocksize": blocksize}
    tensors, state = _quantized(weight, **how)
    tensors = {key.replace("nf4", kind): value for key, value in tensors.items()}
    packed = _packed(store, tensors)
    assert packed.shape == shape
    _assert_same_bits(decode(packed), _oracle(tensors["w"], state))


@pytest.mark.parametrize("storage", STORAGES)
def test_storage_dtype_changes_nothing(store: Store, decode: Decode, storage: str) -> None:
    """The codes may be stored as any dtype, and be read from the middle of an element."""
    weight = _random(33, 80)
    tensors, state = _quantized(weight, quant_storage=getattr(torch, storage))
    packed = _packed(store, tensors)
    assert packed.roles["weight"].dtype.torch == storage
    expected = _oracle(tensors["w"], state)
    _assert_same_bits(decode(packed), expected)
    _assert_same_bits(decode(packed, 7, 8), expected[7:8])


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (4, 11), (18, 19), (5, 5), (0, 19)])
@pytest.mark.parametrize("columns", [33, 64, 200])
@pytest.mark.parametrize("double", [False, True])
def test_rows_equal_the_slice_of_the_whole(
    store: Store, decode: Decode, *, double: bool, columns: int, start: int, stop: int
) -> None:
    """Rows that begin in the middle of a byte, a block or a nested block are the same rows."""
    tensors, _ = _quantized(_random(19, columns), blocksize=32, compress_statistics=double)
    packed = _packed(store, tensors)
    _assert_same_bits(decode(packed, start, stop), decode(packed)[start:stop])


def test_long_nesting_is_read_from_the_middle(store: Store, decode: Decode) -> None:
    """A weight of many nested blocks: each row takes the outer scale of its own."""
    tensors, state = _quantized(_random(600, 96), blocksize=32, compress_statistics=True)
    packed = _packed(store, tensors)
    expected = _oracle(tensors["w"], state)
    assert len(tensors["w.nested_absmax"]) > 2
    for start in range(0, 600, 75):
        _assert_same_bits(decode(packed, start, start + 75), expected[start : start + 75])


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_code_at_extreme_scales_decodes_as_the_library(
    store: Store, decode: Decode, dtype: torch.dtype, kind: str
) -> None:
    """Zero, tiny, huge, infinite and NaN scales, with every pair of codes."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(8)[:, None]
    absmax = torch.tensor([0.0, 1e-35, 2.0**-14, 1.0, 65504.0, 3.4e38, torch.inf, torch.nan])
    state = QuantState(
        absmax.repeat_interleave(8),
        torch.Size([64, 64]),
        library_table(kind, device="cpu"),
        64,
        kind,
        dtype,
    )
    ours, theirs = decode(_packed(store, _stored(codes, state))), _oracle(codes, state)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_subnormal_result_is_rounded_and_not_flushed(store: Store, decode: Decode) -> None:
    """bfloat16 below 2^-126: as exact arithmetic, where the library's AVX-512 kernel gives zero."""
    codes = torch.arange(256, dtype=torch.uint8)[:, None]
    table = library_table("nf4", device="cpu")
    absmax = torch.full((8,), 2.0**-127)
    state = QuantState(absmax, torch.Size([8, 64]), table, 64, "nf4", torch.bfloat16)
    pairs = torch.stack((codes >> 4, codes & 15), dim=1).reshape(8, 64).long()
    exact = (table.double()[pairs] * 2.0**-127).to(torch.bfloat16)
    assert exact.count_nonzero() == 15 * 32
    _assert_same_bits(decode(_packed(store, _stored(codes, state))), exact)


@pytest.mark.parametrize("absmax_dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_scales_decode_as_the_library(
    store: Store, decode: Decode, absmax_dtype: torch.dtype
) -> None:
    """Scales that a writer rounded to 16 bit are widened, not refused."""
    tensors, state = _quantized(_random(8, 64))
    state.absmax = tensors["w.absmax"] = tensors["w.absmax"].to(absmax_dtype)
    _assert_same_bits(decode(_packed(store, tensors)), _oracle(tensors["w"], state))


def test_every_stored_tensor_has_a_role_and_plain_ones_none(store: Store) -> None:
    """A checkpoint that mixes both gives the packed weights only, each with all that is its."""
    first, _ = _quantized(_random(8, 64), compress_statistics=True)
    second, _ = _quantized(_random(8, 64), quant_type="fp4")
    quantized = {f"a.{key}": value for key, value in first.items()}
    quantized |= {f"b.{key}": value for key, value in second.items()}
    plain = {"norm.weight": _random(64), "head.weight": _random(9, 64), "mask": torch.ones(2)}
    found = list(bnb4.packed(store({**plain, **quantized}), {"family": None}))
    assert sorted(packed.name for packed in found) == ["a.w", "b.w"]
    roles = [ref.name for packed in found for ref in packed.roles.values()]
    assert sorted(roles) == sorted(quantized)
    assert json.loads(json.dumps([packed.settings for packed in found]))


@pytest.mark.parametrize(
    ("config", "ours"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, True),
        ({"load_in_4bit": True}, True),
        ({"_load_in_4bit": True, "quant_method": "bitsandbytes"}, True),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, False),
        ({"quant_method": "gptq", "bits": 4}, False),
        ({}, False),
    ],
)
def test_config_is_recognised(config: dict[str, Any], ours: bool) -> None:
    """Only a config that says 4 bits of bitsandbytes is this scheme's."""
    assert (bnb4.settings(config) is not None) is ours


def _without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key not in names}


def _cut(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensors[name][:-1]}


def _as(name: str, dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensors[name].to(dtype)}


def _with_state(**fields: Any) -> Callable[[Tensors], Tensors]:
    def changed(tensors: Tensors) -> Tensors:
        state = json.loads(bytes(tensors[STATE].tolist())) | fields
        text = json.dumps({key: value for key, value in state.items() if value != "absent"})
        return {**tensors, STATE: torch.tensor(list(text.encode()), dtype=torch.uint8)}

    return changed


def _with_bytes(content: bytes) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, STATE: torch.tensor(list(content), dtype=torch.uint8)}


def _other_table(tensors: Tensors) -> Tensors:
    return {**tensors, "w.quant_map": tensors["w.quant_map"].flip(0)}


def _renamed_state(kind: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace("__nf4", f"__{kind}"): tensors[key] for key in tensors}


def _two_states(tensors: Tensors) -> Tensors:
    return {**tensors, STATE.replace("nf4", "fp4"): tensors[STATE]}


@pytest.mark.parametrize(
    ("change", "tensor", "field", "says"),
    [
        (_without("w"), STATE, None, "its w is missing"),
        (_without("w.absmax"), STATE, None, "w.absmax is missing"),
        (_without("w.quant_map"), STATE, None, "w.quant_map is missing"),
        (_without("w.nested_absmax"), STATE, None, "w.nested_absmax is missing"),
        (_without("w.nested_quant_map"), STATE, None, "w.nested_quant_map is missing"),
        (_without(STATE), "w", None, "is missing"),
        (_without(STATE, "w"), "w.absmax", None, "is missing"),
        (_without("w.nested_absmax", "w.nested_quant_map"), "w.absmax", None, "is U8"),
        (_cut("w"), "w", None, "has 255 bytes; 4-bit codes of shape [8, 64] take 256"),
        (_cut("w.absmax"), "w.absmax", None, "has 7 elements"),
        (_cut("w.quant_map"), "w.quant_map", None, "has shape [15]"),
        (_cut("w.nested_quant_map"), "w.nested_quant_map", None, "has shape [255]"),
        (_as("w.absmax", torch.float32), "w.absmax", None, "is F32"),
        (_as("w.quant_map", torch.float16), "w.quant_map", None, "is F16"),
        (_as("w.nested_absmax", torch.float16), "w.nested_absmax", None, "is F16"),
        (_as(STATE, torch.int8), STATE, None, "is I8"),
        (_other_table, "w.quant_map", None, "has 1 where nf4 has -1"),
        (
            _renamed_state("af4"),
            "w.quant_state.bitsandbytes__af4",
            "quant_type",
            "is nf4, which its name",
        ),
        (_renamed_state("fp4"), "w.quant_state.bitsandbytes__fp4", "quant_type", "contradicts"),
        (_two_states, STATE, None, "two states"),
        (_with_bytes(b"{"), STATE, None, "not valid JSON"),
        (_with_bytes(b"\xff\xfe"), STATE, None, "not UTF-8"),
        (_with_bytes(b"[]"), STATE, None, ""),
        (_with_state(quant_type="af4"), STATE, "quant_type", "is 'af4'; known are nf4, fp4"),
        (_with_state(quant_type="absent"), STATE, "quant_type", "is missing"),
        (_with_state(blocksize=0), STATE, "blocksize", "is 0"),
        (_with_state(blocksize=10**9), STATE, "blocksize", "is 1000000000"),
        (_with_state(blocksize=True), STATE, "blocksize", "is True"),
        (_with_state(blocksize=32), "w.absmax", None, "has 8 elements"),
        (_with_state(dtype="uint8"), STATE, "dtype", "is 'uint8'"),
        (_with_state(shape=None), STATE, "shape", "is None"),
        (_with_state(shape=[]), STATE, "shape", "is []"),
        (_with_state(shape=[8, -64]), STATE, "shape", "is [8, -64]"),
        (_with_state(shape=[8, 66]), "w", None, "of shape [8, 66] take 264"),
        (_with_state(nested_blocksize="absent"), STATE, "nested_blocksize", "is missing"),
        (_with_state(nested_dtype="int8"), STATE, "nested_dtype", "is 'int8'"),
        (_with_state(nested_offset="0.1"), STATE, "nested_offset", "is '0.1'"),
        (_with_state(nested_offset=[1]), STATE, "nested_offset", "is [1]"),
    ],
)
def test_contradicting_parts_are_refused_by_name(
    store: Store,
    change: Callable[[Tensors], Tensors],
    tensor: str,
    field: str | None,
    says: str,
) -> None:
    """A missing, misshapen or unknown part is an InputError that names it and the numbers."""
    tensors, _ = _quantized(_random(8, 64), compress_statistics=True)
    with pytest.raises(InputError) as caught:
        _packed(store, change(tensors))
    assert (caught.value.tensor, caught.value.field) == (tensor, field)
    assert says in caught.value.message


def test_conv1d_family_is_unsupported(store: Store) -> None:
    """GPT-2's layers are packed transposed, which a square one would not show."""
    tensors, _ = _quantized(_random(64, 64))
    settings = bnb4.settings({**CONFIG, "model_type": "gpt2"})
    assert settings is not None
    with pytest.raises(MismatchError) as caught:
        list(bnb4.packed(store(tensors), settings))
    assert caught.value.code is Code.UNSUPPORTED


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "plain"
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(torch.bfloat16).save_pretrained(path)
    return path


def test_touched_checkpoint_of_transformers_loads_with_its_skip_list(
    tiny: Path, tmp_path: Path, decode: Decode
) -> None:
    """What `skipping` writes loads: the decoded module is plain, the others stay in 4 bit."""
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    original = AutoModelForCausalLM.from_pretrained(tiny, quantization_config=how)
    original.save_pretrained(tmp_path)
    module = "model.layers.0.mlp.up_proj"
    with open_checkpoint(tmp_path) as base:
        assert base.config is not None
        config = dict(base.config)
        found = bnb4.packed(base.tensors, {"family": "llama"})
        packed = next(each for each in found if each.name == f"{module}.weight")
        weight = decode(packed).reshape(packed.shape)
        roles = {ref.name for ref in packed.roles.values()}
    file = tmp_path / "model.safetensors"
    tensors = {name: value for name, value in load_file(file).items() if name not in roles}
    save_file({**tensors, packed.name: weight}, file, metadata={"format": "pt"})
    config["quantization_config"] = bnb4.skipping(config["quantization_config"], [module])
    (tmp_path / "config.json").write_text(json.dumps(config))

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    linear = [name for name, each in loaded.named_modules() if isinstance(each, torch.nn.Linear)]
    plain = [name for name in linear if type(loaded.get_submodule(name)) is torch.nn.Linear]
    assert sorted(plain) == ["lm_head", module]
    _assert_same_bits(loaded.get_submodule(module).weight.data, weight)
    for name in set(linear) - {module}:
        theirs = original.get_submodule(name).weight
        assert torch.equal(loaded.get_submodule(name).weight, theirs), name


def test_skip_list_is_extended_once_and_names_fused_modules() -> None:
    """Names are appended, and vLLM's name for q, k and v where all three are there."""
    modules = ["m.q_proj", "m.k_proj", "m.v_proj", "m.up_proj"]
    config = {"llm_int8_skip_modules": ["lm_head", "m.q_proj"], "load_in_4bit": True}
    changed = bnb4.skipping(config, modules)
    assert changed == {
        "llm_int8_skip_modules": ["lm_head", *modules, "m.qkv_proj"],
        "load_in_4bit": True,
    }
    assert config["llm_int8_skip_modules"] == ["lm_head", "m.q_proj"]


ROUND_TRIPS: Sequence[tuple[int, ...]] = [(48, 128), (7, 96), (3, 5), (2, 3, 64), (1,), (4096, 65)]


@pytest.mark.parametrize("blocksize", [32, 64, 4096])
@pytest.mark.parametrize("shape", ROUND_TRIPS, ids=str)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_quantize_dequantize_is_the_librarys_round_trip(
    dtype: torch.dtype, kind: str, double: bool, shape: tuple[int, ...], blocksize: int
) -> None:
    """A plain weight comes back with the very bits that the library gives it."""
    weight = _random(*shape, dtype=dtype)
    weight.view(-1)[: weight.numel() // 2 : 97] *= 30
    before = weight.clone()
    how = {"quant_type": kind, "blocksize": blocksize}
    codes, state = quantize_4bit(weight, compress_statistics=double, **how)
    ours = four_bit_encoding.quantize_dequantize(weight, double_quant=double, **how)
    assert ours.shape == weight.shape
    _assert_same_bits(ours.reshape(-1, shape[-1]), _oracle(codes, state))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("rows", [1, 65, 300])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_round_trip_of_zeros_and_ties_is_the_librarys(kind: str, double: bool, rows: int) -> None:
    """Blocks of nothing but zeros, and values that lie halfway between two codes."""
    table = library_table(kind, device="cpu").sort().values
    halfway = (table[:-1] + table[1:]) / 2
    weight = torch.zeros(rows, 64)
    weight[::2, 0] = 1
    weight[::2, 1:16] = halfway
    weight[::2, 16:31] = torch.nextafter(halfway, torch.tensor(torch.inf))
    codes, state = quantize_4bit(weight, quant_type=kind, compress_statistics=double)
    ours = four_bit_encoding.quantize_dequantize(weight, quant_type=kind, double_quant=double)
    _assert_same_bits(ours, _oracle(codes, state))


def test_round_trip_works_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is held at a time changes no bit."""
    weight = _random(100, 130)
    whole = four_bit_encoding.quantize_dequantize(weight, double_quant=True)
    monkeypatch.setattr(four_bit_encoding, "_CHUNK", 128)
    _assert_same_bits(four_bit_encoding.quantize_dequantize(weight, double_quant=True), whole)


def test_round_trip_of_a_stored_weight_gives_it_back(store: Store, decode: Decode) -> None:
    """Decoding what the library stores and the round trip of the plain weight agree."""
    weight = _random(64, 256)
    tensors, _ = _quantized(weight, compress_statistics=True)
    ours = four_bit_encoding.quantize_dequantize(weight, double_quant=True)
    _assert_same_bits(decode(_packed(store, tensors)), ours)


def test_tables_are_the_librarys() -> None:
    """NF4, FP4 and the dynamic 8-bit table, bit for bit."""
    _assert_same_bits(dynamic_table(torch.device("cpu")), create_dynamic_map())
    for kind, values in FOUR_BIT.items():
        _assert_same_bits(torch.tensor(values), library_table(kind, device="cpu"))


def test_nearest_codes_are_the_nearest_of_all() -> None:
    """The rounding of the library's CUDA kernels, against a search through all 256 entries."""
    table = create_dynamic_map()
    values = torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = torch.cat([values, values * 1e-4, table, torch.tensor([-1.0, 1.0])])
    distances = (values.double()[:, None] - table.double()).abs()
    codes = dynamic_codes(values, table, "nearest")
    chosen = distances[torch.arange(len(values)), codes]
    # An edge is rounded to float32, so a value beside it may go either way.
    assert torch.all(chosen <= distances.min(dim=1).values + 1e-7)
    assert torch.equal(codes[-258:-2], torch.arange(256))
