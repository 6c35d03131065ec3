"""OneTrainer's layout: kohya's endings on diffusers' flattened names, `lora_transformer_`.

Its text encoders are numbered as in the pipeline (`lora_te1_`, `lora_te2_`: Flux's T5 is the
second). Its DoRA has norms over the outputs unless told otherwise. Newer versions write the dots,
which are the layouts of diffusers and ComfyUI. Source: real files; Nerogar/OneTrainer pull
request 1563.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.layouts import Evidence
from adaptool.layouts.kohya_keys import component_of
from adaptool.layouts.pipeline_decode import Found, adapter_of
from adaptool.layouts.pipeline_keys import claimed, stems_of
from adaptool.model.adapter import Adapter
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.names import text_encoders
from adaptool.names.diffusion import families
from adaptool.store.adapter_files import AdapterFiles

__all__ = ["DETECT", "LOSSY", "TITLE", "decode", "sniff"]

TITLE = "OneTrainer"
DETECT = "keys `lora_transformer_*` or `lora_prior_*`"
LOSSY = ""

_DENOISERS: Mapping[str, str] = {
    "lora_transformer": "transformer",
    "lora_prior_unet": "prior",
    "lora_prior": "prior",
    "lora_unet": "unet",
}
_COMPONENTS: Mapping[str, str] = {
    **_DENOISERS,
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
}
_OWN = ("lora_transformer_", "lora_prior_")


def sniff(files: AdapterFiles) -> Evidence:
    """All its keys, where one of them has a prefix that it alone writes."""
    if not any(key.startswith(_OWN) for key in files.tensors):
        return Evidence(0, tuple(files.tensors), "no key begins with lora_transformer_")
    count, others = claimed(files.tensors, _split)
    return Evidence(count, others, f"{count} keys are flattened names of diffusers' modules")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError where it contradicts itself."""
    stems, leftover = stems_of(files.tensors, _split)
    return adapter_of(files, reading, Found("onetrainer", stems, leftover))


def _split(path: str) -> tuple[str, str] | None:
    found = component_of(path, _COMPONENTS)
    if found is None:
        return None
    component, flat = found
    denoises = component in _DENOISERS.values()
    module = _module(flat) if denoises else text_encoders.path_of(flat)
    return None if module is None else (component, module)


def _module(flat: str) -> str | None:
    """The module of diffusers that is `flat` with `_` for every dot."""
    return next(
        (path for family in families().values() if (path := family.by_flat_module(flat))), None
    )
