"""Directories of adapters that are no safetensors files: recognised, with what to do instead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.store.safe_names import printable


@dataclass(frozen=True, slots=True)
class _Package:
    """A file (a glob) that only this kind of directory holds."""

    marker: str
    what: str
    hint: str


_PACKAGES = (
    _Package(
        "adapter_weights.bin",
        "is an Apple .fmadapter package, which belongs to one version of Apple's system model",
        "start from the adapter that the toolkit trained, before its export",
    ),
    _Package(
        "pytorch_adapter.bin",
        "is an adapter of the AdapterHub library, pickled",
        "load it there and merge it (merge_adapter), or train it with PEFT",
    ),
    _Package(
        "*.distcp",
        "is a distributed checkpoint, as NeMo and Megatron write them",
        "export the adapter with Megatron-Bridge (save_hf_adapter), which writes PEFT's layout",
    ),
    _Package(
        "adapters.npz",
        "is an adapter of MLX' first examples, a NumPy archive",
        "save its arrays as adapters.safetensors (mlx.core.load, mlx.core.save_safetensors)",
    ),
)


def refuse_stranger(path: Path) -> None:
    """MismatchError (exit 4) where the directory is of a kind that is not read."""
    for package in _PACKAGES:
        if next(path.glob(package.marker), None) is not None:
            raise MismatchError(
                package.what, code=Code.UNSUPPORTED, file=printable(str(path)), hint=package.hint
            )
