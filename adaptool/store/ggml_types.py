"""ggml's tensor types by number. Source: ggml, include/ggml.h, enum ggml_type."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from adaptool.dtypes import DTYPES, Dtype

TYPES: Mapping[int, Dtype] = MappingProxyType(
    {
        0: DTYPES["F32"],
        1: DTYPES["F16"],
        24: DTYPES["I8"],
        25: DTYPES["I16"],
        26: DTYPES["I32"],
        27: DTYPES["I64"],
        28: DTYPES["F64"],
        30: DTYPES["BF16"],
    }
)
"""Plain numbers."""

IDS: Mapping[str, int] = MappingProxyType({dtype.name: number for number, dtype in TYPES.items()})
"""dtype name -> number."""

QUANTIZED: Mapping[int, str] = MappingProxyType(
    {
        2: "Q4_0",
        3: "Q4_1",
        6: "Q5_0",
        7: "Q5_1",
        8: "Q8_0",
        9: "Q8_1",
        10: "Q2_K",
        11: "Q3_K",
        12: "Q4_K",
        13: "Q5_K",
        14: "Q6_K",
        15: "Q8_K",
        16: "IQ2_XXS",
        17: "IQ2_XS",
        18: "IQ3_XXS",
        19: "IQ1_S",
        20: "IQ4_NL",
        21: "IQ3_S",
        22: "IQ2_S",
        23: "IQ4_XS",
        29: "IQ1_M",
        34: "TQ1_0",
        35: "TQ2_0",
        39: "MXFP4",
        40: "NVFP4",
        41: "Q1_0",
    }
)
"""Block formats, of which no element can be read alone."""
