"""What ModelOpt's schemes have in common: the config's algorithm, and parts that stand alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptool.quantizers.stored_parts import refuse
from adaptool.store.tensors import TensorRef

SKIPPED = "ignore"


def algorithm(config: Mapping[str, Any]) -> str | None:
    """The `quant_algo` in capitals; None where the config is not ModelOpt's."""
    method = str(config.get("quant_method")).lower()
    return str(config.get("quant_algo")).upper() if method.startswith("modelopt") else None


def check_no_rotation(module: str, tensors: Mapping[str, TensorRef]) -> None:
    """InputError where the inputs are scaled before the weight: it is not the model's own then."""
    ref = tensors.get(f"{module}.pre_quant_scale")
    if ref is not None:
        refuse(ref, "scales the inputs of a packed weight, which is not read yet")


def orphan(ref: TensorRef, tensors: Mapping[str, TensorRef], coded: str) -> None:
    """InputError where `ref` is a scale and its weight is not packed as `coded`."""
    module, _, part = ref.name.rpartition(".")
    if part not in {"weight_scale", "weight_scale_2"}:
        return
    owner = tensors.get(f"{module}.weight")
    if owner is None or owner.dtype.name != coded:
        kind = "missing" if owner is None else owner.dtype.name
        refuse(ref, f"is the scale of a packed weight, and {module}.weight is {kind}")
