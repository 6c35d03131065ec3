"""ComfyUI's layout, which ai-toolkit and others write as well: the checkpoint's own names.

`diffusion_model.<module of the checkpoint>.<ending>`, and `text_encoders.<name>.transformer.<path>`
for text encoders. Fused modules stay fused. Some trainers put the prefix before diffusers' names.
Alpha stands in `.alpha`; where it is missing it is the rank.
"""

from __future__ import annotations

from adaptool.layouts import Evidence
from adaptool.layouts.comfyui_encode import encode, losses
from adaptool.layouts.pipeline_decode import Found, adapter_of
from adaptool.layouts.pipeline_keys import claimed, stems_of
from adaptool.layouts.pipeline_names import CLIP, DENOISER
from adaptool.model.adapter import Adapter
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.store.adapter_files import AdapterFiles

__all__ = ["DETECT", "LOSSY", "TITLE", "decode", "encode", "losses", "sniff"]

TITLE = "ComfyUI, ai-toolkit"
DETECT = "keys begin with `diffusion_model.` or `text_encoders.`"
LOSSY = "LoRA and DoRA factors and bias differences only; models whose checkpoint names are known"

_DENOISER = "diffusion_model."
_CLIPS = "text_encoders."
_INNER = ".transformer."


def sniff(files: AdapterFiles) -> Evidence:
    """The keys below `diffusion_model.` and `text_encoders.`."""
    count, others = claimed(files.tensors, _split)
    return Evidence(count, others, f"{count} keys begin with diffusion_model. or text_encoders.")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError where it contradicts itself."""
    stems, leftover = stems_of(files.tensors, _split)
    return adapter_of(files, reading, Found("comfyui", stems, leftover))


def _split(path: str) -> tuple[str, str] | None:
    if path.startswith(_DENOISER):
        return DENOISER, path.removeprefix(_DENOISER)
    clip, found, rest = path.removeprefix(_CLIPS).partition(_INNER)
    if path.startswith(_CLIPS) and found:
        return CLIP + clip, rest
    return None
