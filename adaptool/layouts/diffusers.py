"""diffusers' layout: pytorch_lora_weights.safetensors, with the pipeline's components as prefixes.

A key is `<component>.<module path>.<ending>`; older files lack the component of the UNet. Endings
changed over the years: `.lora_A.weight` (PEFT), `.lora.down.weight`, `_lora.down.weight` in
attention processors, `.lora_linear_layer.down.weight` in text encoders. Ranks and alphas stand in
the metadata `lora_adapter_metadata`, a LoRA config for each component; without it alpha is the
rank. Source: diffusers 0.42.1, loaders/lora_base.py, utils/state_dict_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adaptool.layouts import Evidence
from adaptool.layouts.diffusers_encode import encode, losses
from adaptool.layouts.pipeline_decode import Configs, Found, adapter_of
from adaptool.layouts.pipeline_keys import claimed, stems_of
from adaptool.layouts.pipeline_names import COMPONENTS, DENOISER, TEXT_ENCODERS
from adaptool.model.adapter import Adapter
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.names.diffusion import known_module
from adaptool.store.adapter_files import AdapterFiles

__all__ = ["DETECT", "LOSSY", "TITLE", "decode", "encode", "losses", "sniff"]

TITLE = "diffusers"
DETECT = "keys begin with a pipeline's component: `unet.`, `transformer.`, `text_encoder.`"
LOSSY = "LoRA and DoRA factors and their biases only: whole tensors and other tuners have no slot"

# Language models have a `transformer.` of their own (GPT-2).
_NOT_OURS = re.compile(r"transformer\.(h|wte|wpe|encoder|word_embeddings)\b")
# Text encoders had the UNet's names for their projections before 0.18.
_OLD_PROJECTION = re.compile(r"\.self_attn\.to_(q|k|v|out)(?:\.0)?$")


def sniff(files: AdapterFiles) -> Evidence:
    """The keys below a component of a pipeline, and those of modules that only diffusers has."""
    count, others = claimed(files.tensors, _split)
    return Evidence(count, others, f"{count} keys begin with a component of a pipeline")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError where it contradicts itself."""
    stems, leftover = stems_of(files.tensors, _split)
    configs = _configs(files.config) if files.config else None
    return adapter_of(files, reading, Found("diffusers", stems, leftover, configs=configs))


def _split(path: str) -> tuple[str, str] | None:
    component, _, rest = path.partition(".")
    if component in COMPONENTS and rest:
        if _NOT_OURS.match(path):
            return None
        if component in TEXT_ENCODERS:
            rest = _OLD_PROJECTION.sub(r".self_attn.\1_proj", rest)
        return component, rest
    return (DENOISER, path) if known_module(path) else None


def _configs(config: Mapping[str, Any]) -> Configs:
    """A component's part of the packed config; all of it where it is packed for none."""

    def of(component: str) -> Mapping[str, Any] | None:
        prefix = f"{component}."
        own = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
        if not own and "lora_alpha" in config:
            own = dict(config)
        return own if "lora_alpha" in own else None

    return of
