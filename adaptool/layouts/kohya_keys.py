"""The keys of kohya's files and of those alike: `<component>_<flattened path>.<ending>`.

The component is `lora_unet`, `lora_te` (one text encoder), `lora_te1` to `lora_te3` (several).
Source: kohya-ss/sd-scripts, networks/lora.py, lora_flux.py, lora_sd3.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.derived import array
from adaptool.model.numbers import as_float64
from adaptool.model.reading import Reading, is_allowed
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef

DENOISER = "denoiser"
"""The component that a pipeline has one of; whether it is a UNet or a transformer, names tell."""

PIPELINE = "pipeline"
"""Any component: a trainer that wraps whatever network it is given names none."""

COMPONENTS: Mapping[str, str] = {
    "lora_unet": DENOISER,
    "lora_unet_": DENOISER,  # Wan-Fun
    "Hunyuan_video_I2V_lora": DENOISER,
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
}
LORA_ENDINGS: Mapping[str, str] = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
}
MOST_NAMES = 20
_KEY = re.compile(r"([^.]+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Grouped:
    """The keys of a file by flattened module name and role, and those of another kind."""

    modules: Mapping[str, Mapping[str, TensorRef]]
    leftover: tuple[TensorRef, ...]


def component_of(flat: str, components: Mapping[str, str]) -> tuple[str, str] | None:
    """`lora_te_text_model_x` -> (text_encoder, text_model_x); None where no prefix fits."""
    for prefix in sorted(components, key=len, reverse=True):
        if flat.startswith(f"{prefix}_"):
            return components[prefix], flat.removeprefix(f"{prefix}_")
    return None


def grouped(
    tensors: Mapping[str, TensorRef], endings: Mapping[str, str], components: Mapping[str, str]
) -> Grouped:
    """Sort keys by module."""
    modules: dict[str, dict[str, TensorRef]] = {}
    leftover = []
    for key, ref in tensors.items():
        match = _KEY.fullmatch(key)
        if match and match[2] in endings and component_of(match[1], components):
            modules.setdefault(match[1], {})[endings[match[2]]] = ref
        else:
            leftover.append(ref)
    return Grouped(modules, tuple(leftover))


def refuse_leftover(leftover: Sequence[TensorRef], files: AdapterFiles, layout: str) -> None:
    """InputError that lists up to 20 keys that the layout does not know."""
    if not leftover:
        return
    message = (
        f"{len(leftover)} of {len(files.tensors)} keys are none of {layout}'s: "
        f"{listed([ref.name for ref in leftover])}"
    )
    hint = "--allow-drop PATTERN leaves them out"
    raise InputError(
        message,
        code=Code.KEYS_UNRECOGNISED,
        file=files.source.name,
        tensor=leftover[0].name,
        hint=hint,
    )


def listed(names: Sequence[str]) -> str:
    """Up to 20 names."""
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


def may_drop(name: str, reading: Reading) -> bool:
    """Whether the caller allowed this tensor to be lost."""
    return is_allowed(name, reading.allow_drop)


def alpha_of(roles: Mapping[str, TensorRef], rank: int, reading: Reading) -> float:
    """The module's alpha: its own tensor, where 0 means rank; else the caller's, else rank.

    InputError where the tensor is no finite number.
    """
    ref = roles.get("alpha")
    if ref is None:
        if reading.scale is not None:
            return reading.scale * rank
        return float(rank) if reading.alpha is None else reading.alpha
    alpha = number_of(ref)
    return alpha or float(rank)


def number_of(ref: TensorRef) -> float:
    """The one number that a tensor holds; InputError where it is not finite, or no number."""
    if ref.elements != 1:
        message = f"shape {list(ref.shape)} holds {ref.elements} numbers, must be one"
        raise InputError(message, code=Code.SHAPE_MISMATCH, file=ref.file, tensor=ref.name)
    if not ref.dtype.floating and ref.dtype.name[0] not in "IU":
        message = f"dtype {ref.dtype.name} is no number"
        raise InputError(message, code=Code.DTYPE_NOT_FLOAT, file=ref.file, tensor=ref.name)
    value = float(as_float64(array(ref), ref.dtype).reshape(-1)[0])
    if not math.isfinite(value):
        message = f"is {value}, so the scale is no number"
        raise InputError(message, code=Code.SCALING_NOT_FINITE, file=ref.file, tensor=ref.name)
    return value
