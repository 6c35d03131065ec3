"""AWQ in its GEMM layout: 4-bit codes with a zero point, scaled by groups of inputs.

For a module X of `out` x `in`, in groups of g inputs:

    X.qweight  I32            [in, out / 8]       8 codes a word, outputs 0 2 4 6 1 3 5 7 upwards
    X.qzeros   I32            [in / g, out / 8]   zero points, packed alike
    X.scales   F16 BF16 F32   [in / g, out]

    W[o, i] = (q[i, o] - z[i // g, o]) * s[i // g, o]      rounded once, to the dtype of the scales

Source: AutoAWQ, `awq/utils/packing_utils.py` and `awq/modules/linear/gemm.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.findings import Code
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.packed_words import unpack_across
from adaptool.quantizers.skip_lists import extended
from adaptool.quantizers.stored_parts import (
    check_axes,
    check_dtype,
    check_name_free,
    check_shape,
    refuse,
    require,
)
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SKIPPED = "modules_to_not_convert"
SCHEME = Scheme(title="AWQ (GEMM)", library="autoawq", skip_list=SKIPPED)
BITS = 4
CODES = 8
# Where output 0, 1, ... 7 lies in a word.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`group_size` (None: one group of all inputs); None where the layout is not 4-bit GEMM."""
    if str(config.get("quant_method")).lower() != "awq" or config.get("backend") == "llm-awq":
        return None
    layout = config.get("version") or config.get("format") or "gemm"
    if str(layout).lower() != "gemm" or config.get("bits", config.get("w_bit", BITS)) != BITS:
        return None
    size = config.get("group_size", config.get("q_group_size", 128))
    return {"group_size": size if isinstance(size, int) and size > 0 else None}


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every module with a `qweight`; InputError where a part is missing or has another shape."""
    for name, ref in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            yield _packed(module, ref, tensors, settings)
        elif part == "qzeros":
            require(tensors, f"{module}.qweight", ref)


def _packed(
    module: str,
    codes: TensorRef,
    tensors: Mapping[str, TensorRef],
    settings: Mapping[str, Any],
) -> Packed:
    zeros = require(tensors, f"{module}.qzeros", codes)
    scales = require(tensors, f"{module}.scales", codes)
    check_name_free(tensors, f"{module}.weight")
    check_dtype(codes, "I32")
    check_dtype(zeros, "I32")
    check_dtype(scales, "F16", "BF16", "F32")
    check_axes(codes, 2)
    columns, rows = codes.shape[0], codes.shape[1] * CODES
    size = settings["group_size"] or columns
    if columns % size:
        message = f"has {columns} inputs, which groups of {size} do not divide"
        refuse(codes, message, code=Code.SHAPE_MISMATCH, field="group_size")
    reason = f"{codes.name} of shape {list(codes.shape)} in groups of {size}"
    check_shape(zeros, (columns // size, rows // CODES), reason)
    check_shape(scales, (columns // size, rows), reason)
    return Packed(
        name=f"{module}.weight",
        scheme="awq",
        roles={"qweight": codes, "qzeros": zeros, "scales": scales},
        shape=(rows, columns),
        dtype=scales.dtype,
        settings={"group_size": size},
    )


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): columns of the stored matrices, which are therefore read whole."""
    first, last = start // CODES, -(-stop // CODES)
    within = slice(start - first * CODES, stop - first * CODES)
    codes = _unpacked(parts.whole("qweight")[:, first:last])[:, within]
    zeros = _unpacked(parts.whole("qzeros")[:, first:last])[:, within]
    scales = parts.whole("scales")[:, start:stop]
    grouped = codes.reshape(len(zeros), packed.settings["group_size"], stop - start)
    weight: torch.Tensor = (grouped - zeros[:, None]) * scales[:, None]
    return weight.reshape(packed.columns, stop - start).T


def _unpacked(words: torch.Tensor) -> torch.Tensor:
    """(rows, words) -> (rows, outputs), outputs in their own order."""
    rows, count = words.shape
    straight = unpack_across(words.contiguous(), BITS).reshape(rows, count, CODES)
    return straight[:, :, _PLACES].reshape(rows, count * CODES)


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` added to the modules that are not converted."""
    return extended(config, SKIPPED, modules)
