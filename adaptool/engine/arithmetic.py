"""Device and dtype of the arithmetic: float64 or float32, never TF32."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.dtypes import Dtype
from adaptool.errors import ResourceError, UsageError
from adaptool.findings import Code
from adaptool.model.options import Machine, Precision

if TYPE_CHECKING:
    import torch

# A GPU hides its latency behind larger tiles; two workers keep copies and kernels overlapping.
CUDA_TILE_ELEMENTS = 16 * 1024 * 1024
CUDA_WORKERS = 3


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Where and in what dtype a merge computes; `tile_elements` is what a tile holds."""

    device: torch.device
    dtype: torch.dtype
    exact: bool
    workers: int
    tile_elements: int


def arithmetic(machine: Machine, precision: Precision, tile_elements: int) -> Arithmetic:
    """Import torch and settle device, dtype and the number of workers."""
    import torch

    device = _device(machine.device)
    torch.set_num_threads(1)  # Python threads share the work; OpenMP would spin beside them
    exact = precision is Precision.FLOAT64
    cuda = device.type == "cuda"
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = False
    workers = machine.threads or (CUDA_WORKERS if cuda else available_cores())
    return Arithmetic(
        device=device,
        dtype=torch.float64 if exact else torch.float32,
        exact=exact,
        workers=workers,
        tile_elements=max(tile_elements, CUDA_TILE_ELEMENTS) if cuda else tile_elements,
    )


def check_device(machine: Machine) -> None:
    """ResourceError where a device was asked for by name and is not there.

    Torch is needed for that; for `auto` and `cpu` there is nothing to ask.
    """
    if machine.device not in ("auto", "cpu"):
        _device(machine.device)


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        message = f"{name!r} is no device; say auto, cpu, cuda or cuda:N"
        raise UsageError(message, code=Code.USAGE, field="--device") from None
    if device.type not in ("cpu", "cuda"):
        message = f"{name!r} is not supported; say auto, cpu, cuda or cuda:N"
        raise UsageError(message, code=Code.USAGE, field="--device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        message = f"{name} asked for, torch sees {torch.cuda.device_count()} CUDA devices"
        raise ResourceError(
            message, code=Code.DEVICE_MISSING, field="--device", hint="--device cpu works anywhere"
        )
    return device


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """torch's dtype of a table entry; only asked for what arithmetic is done on."""
    import torch

    found: torch.dtype = getattr(torch, str(dtype.torch))
    return found
