"""GGUF files written by the gguf package, and read by it: the judge of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def write(
    path: Path,
    tensors: Mapping[str, Array],
    *,
    arch: str = "llama",
    alpha: float | None = 16.0,
    kind: str = "adapter",
    **fields: str,
) -> Path:
    """A LoRA as convert_lora_to_gguf.py writes it."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(kind)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    if alpha is not None:
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, text in fields.items():
        writer.add_string(name, text)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Fields and tensors (in torch's order of axes) as the gguf package reads them."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {each.name: np.array(each.data) for each in reader.tensors}
    return fields, tensors
