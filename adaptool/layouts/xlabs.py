"""XLabs' layout for FLUX.1 (x-flux): attention processors that hold their own factors.

`double_blocks.N.processor.qkv_lora1.down.weight`: 1 is the image's stream, 2 the text's. There is
no alpha, the scale is 1. Source: XLabs-AI/x-flux, src/flux/modules/layers.py.
"""

from __future__ import annotations

import re

from adaptool.layouts import Evidence
from adaptool.layouts.pipeline_decode import Found, adapter_of
from adaptool.layouts.pipeline_keys import Stem
from adaptool.layouts.pipeline_names import DENOISER
from adaptool.model.adapter import Adapter
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef

__all__ = ["DETECT", "LOSSY", "TITLE", "decode", "sniff"]

TITLE = "XLabs"
DETECT = "keys `double_blocks.N.processor.qkv_lora1.down.weight`"
LOSSY = ""

_KEY = re.compile(
    r"(?:diffusion_model\.)?((?:double_blocks\.\d+\.processor\.(?:qkv|proj)_lora[12])"
    r"|(?:single_blocks\.\d+\.processor\.(?:qkv|proj)_lora))\.(down|up)\.weight"
)


def sniff(files: AdapterFiles) -> Evidence:
    """The processors of FLUX.1's blocks."""
    others = tuple(key for key in files.tensors if not _KEY.fullmatch(key))
    count = len(files.tensors) - len(others)
    return Evidence(count, others, f"{count} keys name attention processors of XLabs")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError where it contradicts itself."""
    modules: dict[str, dict[str, TensorRef]] = {}
    leftover = []
    for key, ref in files.tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            leftover.append(ref)
        else:
            modules.setdefault(match[1], {})[match[2]] = ref
    stems = [Stem(DENOISER, path, roles) for path, roles in modules.items()]
    return adapter_of(files, reading, Found("xlabs", stems, leftover))
