"""What compressed-tensors' config says of weights, and which of its formats a module is in.

`config_groups` holds groups of modules with bits, type, strategy and format; `ignore` lists the
modules outside them. Which group a module is in is told by what is stored of it, because the names
that groups target are a model class's. Source: compressed-tensors 0.20, `quantization/`
(quant_args, quant_config), `compressors/format.py` and the `compressors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptool.findings import Code
from adaptool.quantizers.scale_grid import Grid, is_grid
from adaptool.quantizers.stored_parts import check_dtype, check_shape, refuse, require
from adaptool.store.tensors import TensorRef

METHOD = "compressed-tensors"
LIBRARY = "compressed-tensors"
SKIPPED = "ignore"
PACK, FLOAT, INT = "pack-quantized", "float-quantized", "int-quantized"
NVFP4, MXFP4, MXFP8 = "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"
FORMATS = frozenset({PACK, FLOAT, INT, NVFP4, MXFP4, MXFP8})
FLOATS = ("BF16", "F16", "F32")
# Scales of activations: nothing of the weight, and of no use without it.
ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale")
_CODED = frozenset({"F8_E4M3", "I8"})
_WEIGHT_PARTS = frozenset(
    {"weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape", "weight_g_idx"}
)


def settings_of(config: Mapping[str, Any], wanted: str) -> Mapping[str, Any] | None:
    """The groups of a format, and every format there is; None where none of it can be read.

    None also where another group has a format that is not known, where weights are rotated
    (`transform_config`) or sparse: a module of those would pass for a plain one.
    """
    if str(config.get("quant_method")).lower() != METHOD or _is_transformed(config):
        return None
    given = config.get("config_groups")
    if not isinstance(given, Mapping):
        return None
    groups = [_group(group, config) for group in given.values() if _has_weights(group)]
    found = [group for group in groups if group is not None]
    own = [group for group in found if group["format"] == wanted]
    if len(found) != len(groups) or not own:
        return None
    return {"groups": own, "formats": sorted({group["format"] for group in found})}


def _is_transformed(config: Mapping[str, Any]) -> bool:
    transforms, sparsity = config.get("transform_config"), config.get("sparsity_config")
    if isinstance(transforms, Mapping):
        transforms = transforms.get("config_groups")
    layout = sparsity.get("format") if isinstance(sparsity, Mapping) else sparsity
    return bool(transforms) or layout not in {None, "dense"}


def _has_weights(group: object) -> bool:
    return not isinstance(group, Mapping) or group.get("weights") is not None


def _group(group: object, config: Mapping[str, Any]) -> dict[str, Any] | None:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
        return None
    size, bits, kind = weights.get("group_size"), weights.get("num_bits", 8), weights.get("type")
    block = _block(weights.get("block_structure"))
    strategy = weights.get("strategy") or _implied(size)
    layout = _format(group, weights, config)
    if layout not in FORMATS or not isinstance(bits, int) or not 1 <= bits <= 8:
        return None
    if strategy in {"group", "tensor_group"} and not (isinstance(size, int) and size > 0):
        return None
    if strategy not in {"tensor", "channel", "group", "tensor_group", "block"}:
        return None
    if strategy == "block" and block is None:
        return None
    return {
        "format": layout,
        "bits": bits,
        "type": str(kind or "int"),
        "symmetric": bool(weights.get("symmetric", True)),
        "strategy": strategy,
        "group_size": size,
        "block": block,
    }


def _implied(size: object) -> str:
    """The strategy where old configs only give a group size."""
    if size is None:
        return "tensor"
    return "channel" if size == -1 else "group"


def _block(value: object) -> list[int] | None:
    if isinstance(value, str):
        value = [int(size) if size.isdigit() else 0 for size in value.split("x")]
    if not isinstance(value, Sequence) or len(value) != 2:
        return None
    return list(value) if all(isinstance(size, int) and size > 0 for size in value) else None


def _format(group: Mapping[str, Any], weights: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The group's format, or the model's, or what the library makes of such weights."""
    given = group.get("format") or config.get("format")
    floating = weights.get("type") == "float"
    if given == "naive-quantized":
        return FLOAT if floating else INT
    if given not in {None, "mixed-precision"}:
        return str(given)
    if not floating:
        return INT if group.get("input_activations") else PACK
    if weights.get("num_bits") == 4:
        return MXFP4 if weights.get("group_size") == 32 else NVFP4
    # Others than 8 bits are formats that are not read: their group is then refused.
    return FLOAT if weights.get("num_bits", 8) == 8 else "unknown"


def modules(
    tensors: Mapping[str, TensorRef], settings: Mapping[str, Any], wanted: str
) -> Iterator[tuple[str, TensorRef, TensorRef]]:
    """Every module in a format: its name, its codes and its scales.

    InputError where a module's parts make no format, or one that the config does not have.
    """
    for name, ref in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "weight_packed" or (part == "weight" and ref.dtype.name in _CODED):
            scales = require(tensors, f"{module}.weight_scale", ref)
            found = _format_of(ref, scales)
            if found not in settings["formats"]:
                message = f"is {found}, which no group of the config is"
                refuse(ref, message, code=Code.FIELD_VALUE, field="config_groups")
            if found == wanted:
                _check_alone(module, ref, tensors)
                yield module, ref, scales
        elif part in _WEIGHT_PARTS:
            _check_owner(module, ref, tensors)


def _format_of(codes: TensorRef, scales: TensorRef) -> str:
    check_dtype(scales, *FLOATS, "F8_E4M3", "U8")
    kind, scale = codes.dtype.name, scales.dtype.name
    if codes.name.endswith(".weight"):
        found = MXFP8 if scale == "U8" else FLOAT if kind == "F8_E4M3" else INT
        check_dtype(scales, *(("U8",) if found == MXFP8 else FLOATS))
        return found
    check_dtype(codes, "I32", "U8")
    if kind == "I32":
        check_dtype(scales, *FLOATS)
        return PACK
    check_dtype(scales, "F8_E4M3", "U8")
    return NVFP4 if scale == "F8_E4M3" else MXFP4


def _check_alone(module: str, codes: TensorRef, tensors: Mapping[str, TensorRef]) -> None:
    plain = f"{module}.weight"
    if codes.name != plain and plain in tensors:
        refuse(tensors[plain], "is stored twice: as it is, and packed")


def _check_owner(module: str, ref: TensorRef, tensors: Mapping[str, TensorRef]) -> None:
    """InputError where a part belongs to no packed weight."""
    plain = tensors.get(f"{module}.weight")
    if f"{module}.weight_packed" in tensors or (plain and plain.dtype.name in _CODED):
        return
    kind = f"{plain.dtype.name}, not packed" if plain else "missing"
    refuse(ref, f"is part of a packed weight, and {module}.weight is {kind}")


def group_for(
    settings: Mapping[str, Any],
    codes: TensorRef,
    scales: TensorRef,
    shape: tuple[int, int],
    suits: Sequence[bool],
) -> tuple[Mapping[str, Any], Grid]:
    """The group whose scales have the shape of these, and their grid.

    `suits` says of each group whether the rest of what is stored agrees with it. InputError where
    none does, or where two do that decode differently.
    """
    found: list[tuple[Mapping[str, Any], Grid]] = []
    asked = []
    for group, fits in zip(settings["groups"], suits, strict=True):
        grid = _grid(group, shape)
        asked.append(f"{group['bits']} bits by {group['strategy']}: {_asked(grid)}")
        if fits and grid is not None and _holds(scales, grid, group):
            found.append((group, grid))
    if not found:
        message = f"has scales of shape {list(scales.shape)} and decodes to {list(shape)}"
        reason = f"{message}, which no group of the config has ({'; '.join(asked)})"
        refuse(codes, reason, code=Code.SHAPE_MISMATCH, field="config_groups")
    if len({(group["bits"], grid) for group, grid in found}) > 1:
        message = f"fits {len(found)} groups of the config, which decode it differently"
        refuse(codes, message, code=Code.SHAPE_AMBIGUOUS, field="config_groups")
    return found[0]


def _asked(grid: Grid | None) -> str:
    return "groups that do not divide the inputs" if grid is None else str(list(grid.shape))


def _grid(group: Mapping[str, Any], shape: tuple[int, int]) -> Grid | None:
    rows, columns = shape
    if group["strategy"] == "tensor":
        return Grid(rows, columns, rows, columns)
    if group["strategy"] == "channel":
        return Grid(rows, columns, 1, columns)
    if group["strategy"] == "block":
        return Grid(rows, columns, *group["block"])
    size = group["group_size"]
    return None if columns % size else Grid(rows, columns, 1, size)


def _holds(scales: TensorRef, grid: Grid, group: Mapping[str, Any]) -> bool:
    if group["strategy"] == "tensor":
        return scales.elements == 1
    return is_grid(scales.shape, grid)


def activations(module: str, tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """What is stored of a module's activations, by part."""
    names = {part: f"{module}.{part}" for part in ACTIVATIONS}
    return {part: tensors[name] for part, name in names.items() if name in tensors}


def check_four_bits(codes: TensorRef, scales: TensorRef, group: int) -> tuple[int, int]:
    """The plain shape of a weight of 4-bit floats; InputError where codes and scales disagree."""
    if len(codes.shape) != 2 or 0 in codes.shape:
        message = f"has shape {list(codes.shape)}; it should have 2 axes, none empty"
        refuse(codes, message, code=Code.SHAPE_MISMATCH)
    rows, columns = codes.shape[0], codes.shape[1] * 2
    if columns % group:
        message = f"has {columns} inputs, which groups of {group} do not divide"
        refuse(codes, message, code=Code.SHAPE_MISMATCH, field="group_size")
    reason = f"a weight of {rows} x {columns} in groups of {group}"
    check_shape(scales, (rows, columns // group), reason)
    return rows, columns
