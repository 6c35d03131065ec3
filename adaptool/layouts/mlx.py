"""MLX-LM's layout: `adapters.safetensors` and an adapter_config.json of its own.

A linear layer has `lora_a` (in, r) and `lora_b` (r, out), an embedding (vocab, r) and (r, dim);
experts that a switch layer holds have (experts, r, in) and (experts, out, r). `scale` multiplies
the product as it is, in all modules alike; an `alpha` beside it counts for nothing. DoRA adds `m`,
the magnitude of each output. Source: mlx-lm 0.32.2, mlx_lm/tuner/{lora,dora,utils}.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from adaptool.errors import AdaptoolError, InputError, MismatchError, gathered
from adaptool.findings import Code
from adaptool.layouts import Evidence
from adaptool.layouts.kohya_keys import may_drop, refuse_leftover
from adaptool.layouts.mlx_encode import encode, losses
from adaptool.layouts.mlx_experts import expert_modules
from adaptool.layouts.plain_deltas import (
    is_embedding,
    lora_delta,
    matrix,
    missing_partner,
    slice_of,
)
from adaptool.layouts.told_scale import said_scaling
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.model.derived import reshaped, transposed
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.names.families import model_types
from adaptool.names.mlx_names import mlx_type, transformers_name
from adaptool.store.adapter_files import SAFETENSORS, AdapterFiles
from adaptool.store.tensors import TensorRef

__all__ = ["DETECT", "LOSSY", "TITLE", "decode", "encode", "losses", "sniff"]

TITLE = "MLX-LM"
DETECT = "keys `*.lora_a`, `*.lora_b` (`*.m`), or a config with `fine_tune_type`"
LOSSY = (
    "one rank and one scale for all modules: smaller ranks are padded with zeros, other scales "
    "multiplied into lora_b; whole tensors, biases and convolutions have no place in it"
)
_ROLES = ("lora_a", "lora_b", "m")


def sniff(files: AdapterFiles) -> Evidence:
    """MLX' are `lora_a`, `lora_b` and `m` without a `.weight` behind; with its config, all keys."""
    if files.container != SAFETENSORS:
        return Evidence(0, tuple(files.tensors), "no safetensors file")
    if _is_full(files):
        return Evidence(len(files.tensors), (), "fine_tune_type is full")
    modules, leftover = _grouped(files.tensors)
    unclaimed = tuple(ref.name for ref in leftover)
    claimed = len(files.tensors) - len(unclaimed) if modules else 0
    return Evidence(claimed, unclaimed, f"{claimed} keys end with lora_a, lora_b or m")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError (with every other problem) where it contradicts itself."""
    deltas: list[Delta] = []
    replaced: list[Replaced] = []
    dropped: list[TensorRef] = []
    if _is_full(files):
        replaced = [Replaced(key, ref, saved_module=True) for key, ref in files.tensors.items()]
    else:
        modules, leftover = _grouped(files.tensors)
        dropped = [ref for ref in leftover if may_drop(ref.name, reading)]
        refuse_leftover([ref for ref in leftover if ref not in dropped], files, TITLE)
        deltas = _deltas(modules, files, reading)
    model = (files.config or {}).get("model")
    return Adapter(
        name=files.name,
        layout="mlx",
        config={},
        deltas=tuple(deltas),
        replaced=tuple(replaced),
        leftover=(),
        tensors=files.tensors,
        findings=(),
        base=model if isinstance(model, str) and model else None,
        dropped=tuple(ref.name for ref in dropped),
    )


def _is_full(files: AdapterFiles) -> bool:
    return files.config is not None and files.config.get("fine_tune_type") == "full"


def _grouped(
    tensors: Mapping[str, TensorRef],
) -> tuple[dict[str, dict[str, TensorRef]], list[TensorRef]]:
    """The keys by module and role, and those of another kind."""
    modules: dict[str, dict[str, TensorRef]] = {}
    for key, ref in tensors.items():
        module, _, role = key.rpartition(".")
        if module and role in _ROLES:
            modules.setdefault(module, {})[role] = ref
    trained = {name: roles for name, roles in modules.items() if roles.keys() - {"m"}}
    claimed = {ref.name for roles in trained.values() for ref in roles.values()}
    return trained, [ref for key, ref in tensors.items() if key not in claimed]


def _deltas(
    modules: Mapping[str, Mapping[str, TensorRef]], files: AdapterFiles, reading: Reading
) -> list[Delta]:
    deltas: list[Delta] = []
    errors: list[AdaptoolError] = []
    for module, roles in modules.items():
        try:
            deltas += _of_module(module, roles, files, reading)
        except AdaptoolError as error:
            errors.append(error)
    if errors:
        raise gathered(errors)
    return deltas


def _of_module(
    module: str, roles: Mapping[str, TensorRef], files: AdapterFiles, reading: Reading
) -> Iterator[Delta]:
    """The deltas of the modules that one module of MLX stands for: one, or one an expert."""
    for here, there in (("lora_a", "lora_b"), ("lora_b", "lora_a")):
        if there not in roles:
            raise missing_partner(roles[here], f"{module}.{there}")
    a, b, magnitude = roles["lora_a"], roles["lora_b"], roles.get("m")
    if len(b.shape) == 3:
        if magnitude is not None:
            raise _no_magnitude(magnitude, "experts of a switch layer")
        yield from _of_experts(module, a, b, files, reading)
        return
    first, second = transposed(matrix(a)), transposed(matrix(b))
    scaling = _scaling(files, reading, first.shape[0])
    types = model_types(reading.base.config if reading.base is not None else None)
    module = transformers_name(mlx_type(types), module)
    if not is_embedding(module, types):
        factors = {"A": first, "B": second}
        yield lora_delta(
            module, factors if magnitude is None else {**factors, "magnitude": magnitude}, scaling
        )
        return
    if magnitude is not None:
        raise _no_magnitude(magnitude, "the rows of an embedding")
    yield lora_delta(module, {"embedding_A": first, "embedding_B": second}, scaling)


def _of_experts(
    module: str, a: TensorRef, b: TensorRef, files: AdapterFiles, reading: Reading
) -> Iterator[Delta]:
    """One delta an expert; older files have lora_a as (experts * r, in)."""
    experts, _, rank = b.shape
    if (
        not experts * rank
        or not a.shape
        or a.elements % (experts * rank)
        or a.shape[-1] * experts * rank != a.elements
    ):
        message = f"lora_a {list(a.shape)} does not fit lora_b {list(b.shape)}"
        raise InputError(message, code=Code.SHAPE_MISMATCH, file=a.file, tensor=a.name)
    stack = reshaped(a, (experts, rank, a.shape[-1]))
    scaling = _scaling(files, reading, rank)
    for place, name in enumerate(expert_modules(module, experts)):
        yield lora_delta(name, {"A": slice_of(stack, place), "B": slice_of(b, place)}, scaling)


def _no_magnitude(ref: TensorRef, what: str) -> MismatchError:
    message = f"DoRA over {what} is no tuner known here"
    return MismatchError(message, code=Code.TUNER_UNSUPPORTED, file=ref.file, tensor=ref.name)


def _scaling(files: AdapterFiles, reading: Reading, rank: int) -> float:
    """`scale` of the config, else the caller's; InputError where there is none, or no number."""
    parameters = (files.config or {}).get("lora_parameters")
    found: Any = parameters.get("scale") if isinstance(parameters, Mapping) else None
    if found is not None:
        if type(found) not in (int, float) or not math.isfinite(found):
            message = f"is {found!r}, must be a finite number"
            field = "lora_parameters.scale"
            raise InputError(message, code=Code.FIELD_VALUE, file=files.config_file, field=field)
        return float(found)
    message = "no lora_parameters.scale in an adapter_config.json: the scale is unknown"
    return said_scaling(files, reading, rank, message)
