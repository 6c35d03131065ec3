"""GPTQ: 2, 3, 4 or 8-bit codes with a zero point, scaled by groups of inputs, in any order.

For a module X of `out` x `in`, in G groups, with b bits a code, low bits first:

    X.qweight  I32            [in * b / 32, out]   codes, packed downwards
    X.qzeros   I32            [G, out * b / 32]    zero points, packed to the right
    X.scales   F16 BF16 F32   [G, out]
    X.g_idx    I32            [in]                 group of an input; absent or all zero: i // g

    W[o, i] = s[g(i), o] * (q[i, o] - z[g(i), o])      rounded once, to the dtype of the scales

`checkpoint_format` gptq (v1) stores z - 1, in which z = 0 wraps round to the largest code; gptq_v2
stores z. With 3 bits, 32 codes share three words and two of them straddle. `dynamic` gives some
modules other settings; their shapes tell their bits.

Source: GPTQModel, `nn_modules/qlinear/__init__.py` (dequantize_weight), `utils/model_dequant.py`
(v1 zero points), `quantization/config.py` (dynamic).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.packed_words import WORD, unpack_across, unpack_down, words_for
from adaptool.quantizers.skip_lists import with_fused
from adaptool.quantizers.stored_parts import (
    check_axes,
    check_dtype,
    check_name_free,
    check_shape,
    refuse,
    refuse_conv1d,
    require,
)
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

DYNAMIC = "dynamic"
SCHEME = Scheme(
    title="GPTQ",
    library="gptqmodel",
    skip_list=DYNAMIC,
    caution="GPTQModel and vLLM honour the skip rules; transformers with optimum does not",
)
WIDTHS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Bits, group size, whether modules may have their own, and how zero points are stored.

    None where the codes are packed for one kernel (marlin, bitblas) or have other widths.
    """
    layout = config.get("checkpoint_format") or config.get("format") or "gptq"
    layout, bits = str(layout).lower(), config.get("bits")
    if str(config.get("quant_method")).lower() != "gptq" or config.get("is_marlin_format"):
        return None
    if layout not in FORMATS or bits not in WIDTHS:
        return None
    size = config.get("group_size")
    return {
        "bits": bits,
        "group_size": size if isinstance(size, int) and size > 0 else None,
        "varied": bool(config.get(DYNAMIC)),
        "zero_offset": 1 if layout == "gptq" else 0,
        "family": config.get("model_type"),
    }


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every module with a `qweight`; InputError where a part is missing or has another shape."""
    for name, ref in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            refuse_conv1d(settings["family"], ref)
            yield _packed(module, ref, tensors, settings)
        elif part in {"qzeros", "g_idx"}:
            require(tensors, f"{module}.qweight", ref)


def _packed(
    module: str,
    codes: TensorRef,
    tensors: Mapping[str, TensorRef],
    settings: Mapping[str, Any],
) -> Packed:
    roles = {"qweight": codes}
    roles |= {part: require(tensors, f"{module}.{part}", codes) for part in ("qzeros", "scales")}
    if f"{module}.g_idx" in tensors:
        roles["g_idx"] = tensors[f"{module}.g_idx"]
    check_name_free(tensors, f"{module}.weight")
    _check_dtypes(roles)
    bits = _bits(roles, settings)
    rows, columns = codes.shape[1], _columns(roles, bits)
    groups = roles["scales"].shape[0]
    size = _group_size(roles["scales"], columns, settings)
    reason = f"a weight of {rows} x {columns} with {bits} bits in {groups} groups"
    check_shape(codes, (words_for(columns, bits), rows), reason)
    check_shape(roles["qzeros"], (groups, words_for(rows, bits)), reason)
    check_shape(roles["scales"], (groups, rows), reason)
    return Packed(
        name=f"{module}.weight",
        scheme="gptq",
        roles=roles,
        shape=(rows, columns),
        dtype=roles["scales"].dtype,
        settings={"bits": bits, "group_size": size, "zero_offset": settings["zero_offset"]},
    )


def _check_dtypes(roles: Mapping[str, TensorRef]) -> None:
    for part, ref in roles.items():
        check_axes(ref, 1 if part == "g_idx" else 2)
        if part == "scales":
            check_dtype(ref, "F16", "BF16", "F32")
        else:
            check_dtype(ref, "I32")


def _bits(roles: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> int:
    """The config's bits, or those that the widths of zero points and scales agree on."""
    given: int = settings["bits"]
    rows, words = roles["scales"].shape[1], roles["qzeros"].shape[1]
    if not settings["varied"] or words_for(rows, given) == words:
        return given
    fitting = [bits for bits in WIDTHS if words_for(rows, bits) == words]
    if len(fitting) != 1:
        message = f"has {words} words for {rows} outputs; no width of {WIDTHS} bits fits"
        refuse(roles["qzeros"], message, code=Code.SHAPE_MISMATCH, field=DYNAMIC)
    return fitting[0]


def _columns(roles: Mapping[str, TensorRef], bits: int) -> int:
    """Inputs: one each in g_idx; without it, as many as the words hold."""
    codes = roles["qweight"]
    if bits == 3 and (codes.shape[0] % 3 or roles["qzeros"].shape[1] % 3):
        refuse(codes, "has words in other than threes; 3-bit codes need them", field="bits")
    if "g_idx" in roles:
        return roles["g_idx"].elements
    return codes.shape[0] * WORD // bits


def _group_size(scales: TensorRef, columns: int, settings: Mapping[str, Any]) -> int:
    """Inputs in a group, where g_idx does not say it."""
    groups = scales.shape[0]
    size: int = settings["group_size"] or columns
    if -(-columns // size) == groups:
        return size
    if not settings["varied"]:
        message = f"has {groups} groups; {columns} inputs in groups of {size} make another number"
        refuse(scales, message, code=Code.SHAPE_MISMATCH, field="group_size")
    return -(-columns // groups)


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): columns of the stored matrices, which are therefore read whole."""
    bits: int = packed.settings["bits"]
    group = _groups(parts, packed)
    codes = unpack_down(parts.whole("qweight")[:, start:stop].contiguous(), bits)[: packed.columns]
    zeros = _zeros(parts, packed, start, stop)
    scales = parts.whole("scales")[:, start:stop]
    weight: torch.Tensor = scales[group] * (codes - zeros[group])
    return weight.T


def _zeros(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Zero points of outputs [start, stop), (groups, outputs); v1 adds 1 within the code's bits."""
    bits: int = packed.settings["bits"]
    # Whole words, and with 3 bits whole threes of them: 32 codes.
    first = start // WORD * bits
    words = parts.whole("qzeros")[:, first : -(-stop // WORD) * bits].contiguous()
    begin = start - start // WORD * WORD
    stored = unpack_across(words, bits)[:, begin : begin + stop - start]
    zeros: torch.Tensor = (stored + packed.settings["zero_offset"]) & (2**bits - 1)
    return zeros


def _groups(parts: Parts, packed: Packed) -> torch.Tensor:
    """The group of every input; InputError where g_idx names one that is not there."""
    import torch

    trivial: torch.Tensor = torch.arange(packed.columns) // packed.settings["group_size"]
    if "g_idx" not in packed.roles:
        return trivial
    stored = parts.whole("g_idx").long()
    groups = packed.roles["scales"].shape[0]
    least, most = int(stored.min()), int(stored.max())
    if least == most == 0:
        return trivial  # writers without act order leave it empty, and kernels do as if it were so
    if least < 0 or most >= groups:
        ref = packed.roles["g_idx"]
        message = f"names groups {least} to {most}; there are {groups}"
        raise InputError(message, code=Code.FIELD_VALUE, file=ref.file, tensor=ref.name)
    return stored


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` as negative rules of `dynamic`, before the others: the first that matches counts.

    GPTQModel and vLLM read them; transformers with optimum does not.
    """
    rules: dict[str, Any] = {f"-:^{re.escape(module)}$": {} for module in with_fused(modules)}
    return {**config, DYNAMIC: {**rules, **(config.get(DYNAMIC) or {})}}
