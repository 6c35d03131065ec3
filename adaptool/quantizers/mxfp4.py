"""MXFP4 as gpt-oss stores its experts: 4-bit floats in blocks of 32 inputs, one exponent each.

For a parameter P (`X.experts.gate_up_proj`, `X.experts.down_proj`) of E experts, `in` x `out`:

    P_blocks   U8   [E, out, in / 32, 16]   codes, two a byte, the first in the low half
    P_scales   U8   [E, out, in / 32]       exponents

    P[e, i, o] = e2m1(code[e, o, i]) * 2 ** (scale[e, o, i // 32] - 127)
                                                          rounded once, to the model's dtype

A scale of 255 is 2 ** 128, too large for float32 by itself: 0 times it is 0, and 0.5 times it a
number (ldexp; older versions of torch made infinity and no number of those).

So the parameter that runtimes and adapters know is the transpose of what lies on disk. Source:
transformers 5.23, `integrations/mxfp4.py` (convert_moe_packed_tensors).

The skip list is read by transformers. vLLM, as far as its source was read, knows none for experts:
there, they are all MXFP4 or none are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.dtypes import DTYPES
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.microscaling import e2m1, e8m0
from adaptool.quantizers.model_dtype import model_dtype
from adaptool.quantizers.skip_lists import extended
from adaptool.quantizers.stacked_modules import with_stacks
from adaptool.quantizers.stored_parts import (
    check_axes,
    check_dtype,
    check_name_free,
    check_shape,
    require,
)
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SKIPPED = "modules_to_not_convert"
SCHEME = Scheme(
    title="MXFP4 (gpt-oss)",
    library="transformers",
    skip_list=SKIPPED,
    caution="transformers honours the skip list; vLLM may take every expert for MXFP4",
)
BLOCK_BYTES = 16


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The dtype that the model computes in; None where the config does not say `mxfp4`."""
    if str(config.get("quant_method")).lower() != "mxfp4":
        return None
    return {"dtype": model_dtype(config).name}


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every parameter with `_blocks` and `_scales`; InputError where one of the two is missing."""
    dtype = DTYPES[settings["dtype"]]
    for name, ref in tensors.items():
        if name.endswith("_blocks"):
            parameter = name.removesuffix("_blocks")
            scales = require(tensors, f"{parameter}_scales", ref)
            check_name_free(tensors, parameter)
            _check(ref, scales)
            experts, rows, groups, _ = ref.shape
            shape = (experts, groups * 2 * BLOCK_BYTES, rows)
            roles = {"blocks": ref, "scales": scales}
            yield Packed(parameter, "mxfp4", roles, shape, dtype, {}, granule=shape[1])
        elif name.endswith("_scales"):
            require(tensors, f"{name.removesuffix('_scales')}_blocks", ref)


def _check(blocks: TensorRef, scales: TensorRef) -> None:
    check_dtype(blocks, "U8")
    check_dtype(scales, "U8")
    check_axes(blocks, 4)
    stacked = blocks.shape[:-1]
    check_shape(blocks, (*stacked, BLOCK_BYTES), "a block of 32 codes")
    check_shape(scales, stacked, f"{blocks.name} of shape {list(blocks.shape)}")


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): inputs of experts, each expert of which is read whole and transposed."""
    import torch

    inputs, outputs = packed.shape[1:]
    first, last = start // inputs, -(-stop // inputs)
    blocks = outputs * inputs // (2 * BLOCK_BYTES)
    codes = parts.span("blocks", first * blocks * BLOCK_BYTES, last * blocks * BLOCK_BYTES)
    # Twice a code times half a scale is the same product, and half of every scale is finite.
    scales = e8m0(parts.span("scales", first * blocks, last * blocks), factor=0.5)
    values = e2m1(codes.reshape(-1, BLOCK_BYTES), torch.float32, factor=2)
    dtype: torch.dtype = getattr(torch, str(packed.dtype.torch))
    weight = values.mul_(scales[:, None]).to(dtype).reshape(last - first, outputs, inputs)
    rows = weight.transpose(1, 2).reshape(-1, outputs)
    return rows[start - first * inputs : stop - first * inputs]


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """The `experts` modules of `modules` added; loaders skip the head by themselves only without.

    Both of a module's parameters have to be plain then: it is one module.
    """
    return extended(config, SKIPPED, with_stacks(modules), default=("lm_head",))
