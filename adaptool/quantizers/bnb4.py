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

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers import bnb4_state
from adaptool.quantizers.bnb4_tables import BYTE_CODES, FP4, NF4, nested_table
from adaptool.quantizers.skip_lists import extended, with_fused
from adaptool.quantizers.stored_parts import refuse, refuse_conv1d, require
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SKIPPED = "llm_int8_skip_modules"
SCHEME = Scheme(title="bitsandbytes NF4 and FP4", library="bitsandbytes", skip_list=SKIPPED)
TABLES: Mapping[str, Sequence[float]] = {"nf4": NF4, "fp4": FP4}
_PARTS = frozenset({"absmax", "quant_map", "nested_absmax", "nested_quant_map"})
