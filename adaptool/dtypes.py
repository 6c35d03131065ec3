"""The one dtype table: safetensors name, torch name, bits an element."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Dtype:
    """A safetensors dtype.

    `torch` is the attribute of the torch module, None where torch has no element type for it;
    `floating` says that it holds plain numbers that arithmetic may be done on.
    """

    name: str
    torch: str | None
    bits: int
    floating: bool


# Order: the format's own, ascending alignment. Source: safetensors 0.8, `Dtype` in tensor.rs.
_TABLE = (
    Dtype("BOOL", "bool", 8, False),
    Dtype("F4", None, 4, False),
    Dtype("F6_E2M3", None, 6, False),
    Dtype("F6_E3M2", None, 6, False),
    Dtype("U8", "uint8", 8, False),
    Dtype("I8", "int8", 8, False),
    Dtype("F8_E5M2", "float8_e5m2", 8, True),
    Dtype("F8_E4M3", "float8_e4m3fn", 8, True),
    Dtype("F8_E8M0", "float8_e8m0fnu", 8, False),
    Dtype("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, True),
    Dtype("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, True),
    Dtype("I16", "int16", 16, False),
    Dtype("U16", "uint16", 16, False),
    Dtype("F16", "float16", 16, True),
    Dtype("BF16", "bfloat16", 16, True),
    Dtype("I32", "int32", 32, False),
    Dtype("U32", "uint32", 32, False),
    Dtype("F32", "float32", 32, True),
    Dtype("C64", "complex64", 64, False),
    Dtype("F64", "float64", 64, True),
    Dtype("I64", "int64", 64, False),
    Dtype("U64", "uint64", 64, False),
)

DTYPES = MappingProxyType({dtype.name: dtype for dtype in _TABLE})
"""safetensors name -> Dtype, in the format's order."""

BY_TORCH_NAME = MappingProxyType({dtype.torch: dtype for dtype in _TABLE if dtype.torch})
"""torch attribute name -> Dtype."""
