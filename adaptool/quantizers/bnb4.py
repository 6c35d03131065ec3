"""bitsandbytes NF4 and FP4: 4-bit codes of a table, scaled by blocks of the flat weight.

For a parameter P (mostly `X.weight`) of n elements in blocks of b:

    P               any   ceil(n / 2) bytes; element 2k is the high half of byte k, 2k + 1 the low
    P.absmax        F32   [ceil(n / b)]   largest magnitude of a block; U8 codes where nested
    P.quant_map     F32   [16]            the table, which the library knows by its name instead
    P.quant_state.bitsandbytes__nf4 (or __fp4)   U8   JSON: quant_type, blocksize, dtype, shape
    where nested ("double quantization"), over m = ceil(n / b) scales in blocks of c:
    P.nested_absmax      F32 [ceil(m / c)]     P.nested_quant_map  F32 [256]
    and in the JSON nested_blocksize, nested_dtype, nested_offset

    absmax[j] = nested_map[code[j]] * nested_absmax[j // c] + nested_offset      in float32
    W[i]      = table[code[i]] * absmax[i // b]          in float32, rounded once to `dtype`

The codes are stored as `bnb_4bit_quant_storage`, which changes their dtype and no byte. Source:
bitsandbytes 0.50, `functional.py` (QuantState) and `backends/default/ops.py`. Its AVX-512 kernel
departs from that in two ways: where blocks do not divide a row it takes the wrong scales, and it
may flush subnormal results to zero.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import BY_TORCH_NAME
from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.codebooks import FOUR_BIT
from adaptool.quantizers.four_bit_encoding import (
    NESTED_BLOCK,
    OFFSET,
    FourBitEncoder,
    state_length,
)
from adaptool.quantizers.skip_lists import extended, with_fused
from adaptool.quantizers.stored_parts import (
    check_dtype,
    check_elements,
    check_shape,
    refuse,
    refuse_conv1d,
    refuse_encoding,
    require,
)
from adaptool.store.documents import parse_json_object
from adaptool.store.small_values import read_small
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SKIPPED = "llm_int8_skip_modules"
SCHEME = Scheme(title="bitsandbytes NF4 and FP4", library="bitsandbytes", skip_list=SKIPPED)
STATE = ".quant_state.bitsandbytes__"
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DECODED = ("float16", "bfloat16", "float32")
_STATE_PARTS = frozenset({"absmax", "quant_map", "nested_absmax", "nested_quant_map"})


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The model's family; None where the config does not say `load_in_4bit`."""
    method = str(config.get("quant_method", "bitsandbytes")).lower()
    wanted = config.get("load_in_4bit") or config.get("_load_in_4bit")
    return {"family": config.get("model_type")} if method == "bitsandbytes" and wanted else None


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every parameter with a quant_state; InputError where its parts contradict it.

    Reads the state and the table of each: some 250 bytes.
    """
    known = {name.partition(STATE)[0] for name in tensors if STATE in name}
    for name, ref in tensors.items():
        parameter, found, _ = name.partition(STATE)
        if found:
            refuse_conv1d(settings["family"], ref)
            yield _packed(parameter, ref, tensors)
            continue
        owner, _, part = name.rpartition(".")
        if part in _STATE_PARTS and owner not in known:
            refuse(ref, f"is part of a 4-bit weight, and {owner}{STATE}* is missing")
        if ref.dtype.name == "U8" and ref.shape[1:] == (1,) and name not in known:
            refuse(ref, f"looks like a 4-bit weight, and {name}{STATE}* is missing")


@dataclass(frozen=True, slots=True)
class _State:
    """The fields of a quant_state, each refused by name where it is not what the library writes."""

    ref: TensorRef
    fields: Mapping[str, Any]

    def one_of(self, key: str, allowed: Sequence[Any]) -> Any:  # noqa: ANN401 - a JSON value
        """The value of `key`, which is one of those allowed."""
        value = self._value(key)
        if isinstance(value, bool) or value not in allowed:
            self._refuse(key, f"is {value!r}; known are {', '.join(map(str, allowed))}")
        return value

    def shape(self) -> tuple[int, ...]:
        """The plain weight's shape."""
        value = self._value("shape")
        if not (isinstance(value, list) and value and all(map(_is_size, value))):
            self._refuse("shape", f"is {value!r}; it should be a list of positive integers")
        return tuple(value)

    def number(self, key: str) -> float:
        """The value of `key` as a float."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(key, f"is {value!r}; it should be a number")
        return float(value)

    def _value(self, key: str) -> Any:  # noqa: ANN401 - a JSON value
        if key not in self.fields:
            refuse(self.ref, "is missing", code=Code.FIELD_MISSING, field=key)
        return self.fields[key]

    def _refuse(self, key: str, message: str) -> None:
        refuse(self.ref, message, code=Code.FIELD_VALUE, field=key)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _read_state(ref: TensorRef) -> _State:
    check_dtype(ref, "U8")
    try:
        return _State(ref, parse_json_object(read_small(ref), file=ref.file))
    except InputError as error:
        refuse(ref, error.message, code=error.code, field=error.field)


def _packed(parameter: str, ref: TensorRef, tensors: Mapping[str, TensorRef]) -> Packed:
    state = _read_state(ref)
    kind = state.one_of("quant_type", tuple(FOUR_BIT))
    if ref.name != f"{parameter}{STATE}{kind}":
        message = f"is {kind}, which its name contradicts"
        refuse(ref, message, code=Code.FIELD_VALUE, field="quant_type")
    roles = _roles(parameter, ref, tensors)
    shape, size = state.shape(), state.one_of("blocksize", BLOCKS)
    elements = _elements(shape)
    _check_codes(roles["weight"], elements, shape)
    _check_table(roles["quant_map"], kind)
    nested = _nested(state, roles, -(-elements // size)) if "nested_absmax" in roles else None
    reason = f"a weight of shape {list(shape)} in blocks of {size}"
    check_elements(roles["absmax"], -(-elements // size), reason)
    check_dtype(roles["absmax"], *(("F32", "F16", "BF16") if nested is None else ("U8",)))
    return Packed(
        name=parameter,
        scheme="bnb4",
        roles=roles,
        shape=shape,
        dtype=BY_TORCH_NAME[state.one_of("dtype", DECODED)],
        settings={
            "quant_type": kind,
            "blocksize": size,
            "nested": nested,
            "state": dict(state.fields),
        },
    )


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for axis in shape:
        count *= axis
    return count


def _roles(
    parameter: str, state: TensorRef, tensors: Mapping[str, TensorRef]
) -> dict[str, TensorRef]:
    roles = {"weight": require(tensors, parameter, state)}
    for part in ("absmax", "quant_map"):
        roles[part] = require(tensors, f"{parameter}.{part}", state)
    if any(f"{parameter}.{part}" in tensors for part in ("nested_absmax", "nested_quant_map")):
        for part in ("nested_absmax", "nested_quant_map"):
            roles[part] = require(tensors, f"{parameter}.{part}", state)
    if sum(f"{parameter}{STATE}{kind}" in tensors for kind in FOUR_BIT) > 1:
        refuse(state, "is one of two states of the same weight")
    return {**roles, "quant_state": state}


def _check_codes(codes: TensorRef, elements: int, shape: Sequence[int]) -> None:
    if codes.length != -(-elements // 2):
        message = f"has {codes.length} bytes; 4-bit codes of shape {list(shape)} take"
        refuse(codes, f"{message} {-(-elements // 2)}", code=Code.SHAPE_MISMATCH)


def _check_table(table: TensorRef, kind: str) -> None:
    """The library decodes with its own table, whatever this one says: they must agree."""
    check_dtype(table, "F32")
    check_shape(table, (16,), "a 4-bit type")
    stored = struct.unpack("<16f", read_small(table))
    wrong = [pair for pair in zip(stored, FOUR_BIT[kind], strict=True) if not _close(*pair)]
    if wrong:
        message = f"has {wrong[0][0]:g} where {kind} has {wrong[0][1]:g}"
        refuse(table, message, code=Code.FIELD_VALUE)


def _close(stored: float, known: float) -> bool:
    return abs(stored - known) <= 1e-6


def _nested(state: _State, roles: Mapping[str, TensorRef], scales: int) -> dict[str, Any]:
    size = state.one_of("nested_blocksize", BLOCKS)
    check_dtype(roles["nested_absmax"], "F32")
    check_dtype(roles["nested_quant_map"], "F32")
    check_shape(roles["nested_quant_map"], (256,), "a table of 8-bit codes")
    reason = f"{scales} scales in blocks of {size}"
    check_elements(roles["nested_absmax"], -(-scales // size), reason)
    dtype = state.one_of("nested_dtype", DECODED)
    return {"blocksize": size, "dtype": dtype, "offset": state.number(OFFSET)}


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): their bytes and the scales of their blocks are read, and no others."""
    import torch

    begin, end = start * packed.columns, stop * packed.columns
    values = _values(parts, packed, begin, end)
    size = packed.settings["blocksize"]
    first, last = begin // size, -(-end // size)
    values *= _spread(_scales(parts, packed, first, last), size, begin - first * size, end - begin)
    dtype: torch.dtype = getattr(torch, str(packed.dtype.torch))
    return values.to(dtype).reshape(-1, packed.columns)


def _spread(scales: torch.Tensor, size: int, skip: int, count: int) -> torch.Tensor:
    """Each scale for the elements of its block, without the first `skip` of them."""
    return scales[:, None].expand(-1, size).reshape(-1)[skip : skip + count]


def _values(parts: Parts, packed: Packed, begin: int, end: int) -> torch.Tensor:
    """The table's float32 entry for every element [begin, end)."""
    import torch

    first = begin // 2
    raw = _bytes(parts, packed, first, -(-end // 2))
    table = torch.tensor(FOUR_BIT[packed.settings["quant_type"]], dtype=torch.float32)
    byte = torch.arange(256)
    pairs = torch.stack((table[byte >> 4], table[byte & 15]), dim=1)
    values = pairs.index_select(0, raw.int()).reshape(-1)
    return values[begin - 2 * first :][: end - begin]


def _bytes(parts: Parts, packed: Packed, first: int, last: int) -> torch.Tensor:
    """Bytes [first, last) of the codes, whatever dtype they are stored as."""
    import torch

    width = packed.roles["weight"].dtype.bits // 8
    whole = parts.span("weight", first // width, -(-last // width)).view(torch.uint8)
    return whole[first % width :][: last - first]


def _scales(parts: Parts, packed: Packed, first: int, last: int) -> torch.Tensor:
    """The scales of blocks [first, last) in float32."""
    import torch

    stored = parts.span("absmax", first, last)
    nested = packed.settings["nested"]
    if nested is None:
        return stored.float()
    size = nested["blocksize"]
    outer = parts.span("nested_absmax", first // size, -(-last // size))
    scales = parts.whole("nested_quant_map").index_select(0, stored.int())
    scales *= _spread(outer, size, first % size, last - first)
    scales = scales.to(getattr(torch, nested["dtype"]))
    scales += torch.tensor(nested["offset"])
    return scales.float()


def rewritten(packed: Packed) -> Mapping[str, tuple[int, ...]]:
    """Codes and scales; with nested ones also the state, which has their mean in it.

    MismatchError for FP4, and for nested scales in other blocks than the library's own.
    """
    if packed.settings["quant_type"] != "nf4":
        refuse_encoding(packed, "is FP4; only NF4 is written again")
    if len(packed.shape) < 2:
        refuse_encoding(packed, f"has shape {list(packed.shape)}; a weight of a layer has 2 axes")
    shapes = {role: packed.roles[role].shape for role in ("weight", "absmax")}
    nested = packed.settings["nested"]
    if nested is None:
        return shapes
    if (nested["blocksize"], nested["dtype"]) != (NESTED_BLOCK, "float32"):
        message = f"has nested {nested['dtype']} scales in blocks of {nested['blocksize']}"
        refuse_encoding(packed, f"{message}; written are float32 in blocks of {NESTED_BLOCK}")
    kept = packed.roles["nested_absmax"]
    return {
        **shapes,
        "nested_absmax": kept.shape,
        "nested_quant_map": packed.roles["nested_quant_map"].shape,
        "quant_state": (state_length(packed),),
    }


def encoder(packed: Packed) -> FourBitEncoder:
    """As bitsandbytes on a CPU, byte for byte."""
    return FourBitEncoder(packed)


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` added to the list; loaders skip the head by themselves only without one."""
    return extended(config, SKIPPED, with_fused(modules), default=("lm_head",))
