"""bitsandbytes LLM.int8(): one byte an element, one scale a row.

For a module X of `out` x `in`:

    X.weight         I8   [out, in]   codes
    X.SCB            F32  [out]       the largest magnitude of each row
    X.weight_format  U8   []          0: rows lie one after the other (absent in older files)

    W[o, i] = q[o, i] * SCB[o] * 7.874015718698502e-3      in float32, from left to right

The constant is 1 / 127. The library decodes to float32. Source: bitsandbytes 0.50,
`_ops.py` (int8_vectorwise_dequant) and `nn/modules.py` (Linear8bitLt).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import DTYPES
from adaptool.findings import Code
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.skip_lists import extended, with_fused
from adaptool.quantizers.stored_parts import (
    check_axes,
    check_dtype,
    check_elements,
    check_shape,
    refuse,
    refuse_conv1d,
    require,
)
from adaptool.store.small_values import read_small
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SKIPPED = "llm_int8_skip_modules"
SCHEME = Scheme(title="bitsandbytes int8", library="bitsandbytes", skip_list=SKIPPED)
ONE_127TH = 7.874015718698502e-3


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The model's family; None where the config does not say `load_in_8bit`."""
    method = str(config.get("quant_method", "bitsandbytes")).lower()
    wanted = config.get("load_in_8bit") or config.get("_load_in_8bit")
    return {"family": config.get("model_type")} if method == "bitsandbytes" and wanted else None


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every int8 weight with its scales; InputError where one of the two is missing."""
    for name, ref in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "weight" and ref.dtype.name == "I8":
            refuse_conv1d(settings["family"], ref)
            yield _packed(module, ref, tensors)
        elif part in {"SCB", "weight_format"}:
            check_dtype(require(tensors, f"{module}.weight", ref), "I8")


def _packed(module: str, codes: TensorRef, tensors: Mapping[str, TensorRef]) -> Packed:
    scales = require(tensors, f"{module}.SCB", codes)
    check_axes(codes, 2)
    check_dtype(scales, "F32")
    check_shape(scales, codes.shape[:1], f"{codes.name} of shape {list(codes.shape)}")
    roles = {"weight": codes, "SCB": scales}
    layout = tensors.get(f"{module}.weight_format")
    if layout is not None:
        _check_row_layout(layout)
        roles["weight_format"] = layout
    return Packed(codes.name, "bnb8", roles, codes.shape, DTYPES["F32"], {})


def _check_row_layout(layout: TensorRef) -> None:
    check_dtype(layout, "U8")
    check_elements(layout, 1, "a weight format")
    value = read_small(layout)[0]
    if value != 0:
        message = f"is {value}, a layout of old GPU kernels; only 0 (rows in order) is read"
        refuse(layout, message, code=Code.FIELD_VALUE)


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop), which lie one after the other."""
    width = packed.columns
    codes = parts.span("weight", start * width, stop * width).reshape(-1, width)
    return codes * parts.span("SCB", start, stop)[:, None] * ONE_127TH


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` added to the list; loaders skip the head by themselves only without one."""
    return extended(config, SKIPPED, with_fused(modules), default=("lm_head",))
