"""Adapters under a published checkpoint's own names, without a prefix.

Black Forest Labs' control adapters for FLUX.1 (Canny, Depth), and files of trainers that dump a
checkpoint's module names as they are. The control adapters bring the query and key norms whole.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.layouts import Evidence
from adaptool.layouts.pipeline_decode import Found, adapter_of
from adaptool.layouts.pipeline_keys import Stem, ending_of, stems_of
from adaptool.layouts.pipeline_names import DENOISER
from adaptool.model.adapter import Adapter
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.names.diffusion import known_module, known_original
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef

__all__ = ["DETECT", "LOSSY", "TITLE", "decode", "sniff"]

TITLE = "original names (BFL control)"
DETECT = "keys are a checkpoint's modules without a prefix: `double_blocks.0.img_attn.qkv`"
LOSSY = ""

_WHOLE = (".scale", ".weight", ".bias")


def sniff(files: AdapterFiles) -> Evidence:
    """A checkpoint's modules, unless diffusers has all of them as well."""
    others = tuple(key for key in files.tensors if not _is_ours(key))
    count = len(files.tensors) - len(others)
    if all(known_module(_module(key)) for key in files.tensors):
        return Evidence(0, tuple(files.tensors), "every name is one of diffusers' as well")
    return Evidence(count, others, f"{count} keys name modules of a published checkpoint")


def _module(key: str) -> str:
    ended = ending_of(key)
    return ended[0] if ended else key.rpartition(".")[0]


def _is_ours(key: str) -> bool:
    return known_original(_module(key)) and (ending_of(key) is not None or key.endswith(_WHOLE))


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError where it contradicts itself."""
    stems, others = stems_of(files.tensors, _split)
    whole = {ref.name: ref for ref in others if _is_ours(ref.name)}
    leftover = [ref for ref in others if ref.name not in whole]
    return adapter_of(files, reading, _found(stems, leftover, whole))


def _found(
    stems: tuple[Stem, ...], leftover: list[TensorRef], whole: Mapping[str, TensorRef]
) -> Found:
    return Found("bfl", stems, leftover, whole)


def _split(path: str) -> tuple[str, str] | None:
    return (DENOISER, path) if known_original(path) else None
