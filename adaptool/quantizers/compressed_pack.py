"""compressed-tensors `pack-quantized`: integers of b bits, end to end in 32-bit words.

For a module X of `out` x `in`, with scales for all, by outputs, or by groups of g inputs:

    X.weight_packed      I32            [out, ceil(in * b / 32)]   q + 2 ** (b - 1), lowest first
    X.weight_scale       BF16 F16 F32   [1]; [out, 1]; [out, in / g]
    X.weight_shape       I64 I32        [2]: out and in
    X.weight_zero_point  I32            [ceil(out * b / 32), in / g], packed down the outputs alike;
                                        I8 [1] where there is one for all; not where symmetric
    X.weight_g_idx       I32            [in]: the group of each input (older files: act order);
                                        -1 where inputs lie in order

    W[o, i] = (q[o, i] - z[o, i // g]) * s[o, i // g]      in the dtype of the scales

Source: compressed-tensors 0.20, `compressors/pack_quantized/`; 0.12 for weight_g_idx, which later
ones do not read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.findings import Code
from adaptool.model.quantizer import Packed, Parts, Scheme
from adaptool.quantizers.compressed_groups import (
    LIBRARY,
    PACK,
    SKIPPED,
    activations,
    group_for,
    modules,
    settings_of,
)
from adaptool.quantizers.row_codes import WORD, signed
from adaptool.quantizers.scale_grid import grid_of, rows_of_scales, scaled
from adaptool.quantizers.skip_lists import extended
from adaptool.quantizers.stored_parts import (
    check_axes,
    check_dtype,
    check_elements,
    check_shape,
    refuse,
    require,
)
from adaptool.store.small_values import read_small
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

SCHEME = Scheme(title="compressed-tensors pack-quantized", library=LIBRARY, skip_list=SKIPPED)


def settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config's groups in this format; None where it has none."""
    return settings_of(config, PACK)


def packed(tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]) -> Iterator[Packed]:
    """Every module in this format; InputError where its parts contradict. Reads the shapes."""
    for module, codes, scales in modules(tensors, settings, PACK):
        yield _packed(module, codes, scales, tensors, settings)


def _packed(
    module: str,
    codes: TensorRef,
    scales: TensorRef,
    tensors: Mapping[str, TensorRef],
    settings: Mapping[str, Any],
) -> Packed:
    stored = require(tensors, f"{module}.weight_shape", codes)
    roles = {"weight_packed": codes, "weight_scale": scales, "weight_shape": stored}
    for part in ("weight_zero_point", "weight_g_idx"):
        if f"{module}.{part}" in tensors:
            roles[part] = tensors[f"{module}.{part}"]
    shape = _read_shape(stored)
    check_axes(codes, 2)
    with_zeros = "weight_zero_point" in roles
    suits = [
        group["symmetric"] != with_zeros and _holds(codes, shape, group["bits"])
        for group in settings["groups"]
    ]
    group, grid = group_for(settings, codes, scales, shape, suits)
    single = group["strategy"] == "tensor"
    if with_zeros:
        _check_zeros(roles["weight_zero_point"], group["bits"], grid.shape, single=single)
    if "weight_g_idx" in roles:
        check_dtype(roles["weight_g_idx"], "I32", "I64")
        check_shape(roles["weight_g_idx"], shape[1:], f"a weight of {shape[1]} inputs")
    return Packed(
        name=f"{module}.weight",
        scheme="compressed_pack",
        roles={**roles, **activations(module, tensors)},
        shape=shape,
        dtype=scales.dtype,
        settings={"bits": group["bits"], "grid": grid.as_json(), "single": single},
    )


def _read_shape(stored: TensorRef) -> tuple[int, int]:
    check_dtype(stored, "I64", "I32")
    check_elements(stored, 2, "the shape of a matrix")
    kind = "<2q" if stored.dtype.name == "I64" else "<2i"
    rows, columns = struct.unpack(kind, read_small(stored))
    if rows <= 0 or columns <= 0:
        refuse(stored, f"is {rows} x {columns}", code=Code.FIELD_VALUE)
    return rows, columns


def _holds(codes: TensorRef, shape: tuple[int, int], bits: int) -> bool:
    return codes.shape == (shape[0], _words(shape[1], bits))


def _words(count: int, bits: int) -> int:
    return -(-count * bits // WORD)


def _check_zeros(zeros: TensorRef, bits: int, grid: tuple[int, int], *, single: bool) -> None:
    if single:
        check_dtype(zeros, "I8")
        check_elements(zeros, 1, "one scale for all")
    else:
        check_dtype(zeros, "I32")
        reason = f"{grid[0]} x {grid[1]} scales with {bits} bits"
        check_shape(zeros, (_words(grid[0], bits), grid[1]), reason)


def decode(parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop): they, their scales and zero points are read, and no others."""
    bits: int = packed.settings["bits"]
    width = packed.roles["weight_packed"].shape[1]
    words = parts.span("weight_packed", start * width, stop * width).reshape(-1, width)
    scales = rows_of_scales(parts, packed, "weight_scale", start, stop)
    values = signed(words, bits, packed.columns, scales.dtype)
    zeros = _zeros(parts, packed, start, stop, scales.dtype)
    groups = _groups(parts, packed) if "weight_g_idx" in packed.roles else None
    if groups is None:
        return scaled(values, scales, grid_of(packed).width, zeros)
    by_input = None if zeros is None else zeros[:, groups]
    return scaled(values, scales[:, groups], 1, by_input)


def _zeros(
    parts: Parts, packed: Packed, start: int, stop: int, dtype: torch.dtype
) -> torch.Tensor | None:
    """Zero points of rows [start, stop), (rows, groups) in `dtype`; None where symmetric."""
    if "weight_zero_point" not in packed.roles:
        return None
    if packed.settings["single"]:
        whole = parts.whole("weight_zero_point").reshape(1, 1)
        return whole.to(dtype).expand(stop - start, 1)
    bits: int = packed.settings["bits"]
    across = packed.roles["weight_zero_point"].shape[1]
    first, last = start * bits // WORD, _words(stop, bits)
    words = parts.span("weight_zero_point", first * across, max(first, last) * across)
    skip = start * bits - first * WORD
    return signed(words.reshape(-1, across).T, bits, stop - start, dtype, skip=skip).T


def _groups(parts: Parts, packed: Packed) -> torch.Tensor | None:
    """The group of every input; None where they lie in order.

    InputError where the groups are not all as large: the library would not take them by this
    index, but in the order that sorting gives.
    """
    import torch

    stored = parts.whole("weight_g_idx").long()
    grid, ref = grid_of(packed), packed.roles["weight_g_idx"]
    if int(stored.min()) == -1:
        return None
    groups = grid.shape[1]
    if int(stored.min()) < 0 or int(stored.max()) >= groups:
        message = f"names groups {int(stored.min())} to {int(stored.max())}; there are {groups}"
        refuse(ref, message, code=Code.FIELD_VALUE)
    sizes = torch.bincount(stored, minlength=groups)
    if int(sizes.min()) != grid.width or int(sizes.max()) != grid.width:
        message = f"makes groups of {int(sizes.min())} to {int(sizes.max())} inputs"
        refuse(ref, f"{message}; they have {grid.width}", code=Code.FIELD_VALUE)
    return stored


def skipping(config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """`modules` added to the modules that no group applies to."""
    return extended(config, SKIPPED, modules)
