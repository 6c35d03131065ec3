"""Adapter tensors in memory: read when a row needs them, checked once, forgotten soon."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from adaptool.engine.arithmetic import Arithmetic, torch_dtype
from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Delta
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch

# Stacked experts are read once for all their rows: the latest few factors stay whatever their
# size (two pairs: rows of neighbouring modules alternate), older ones within this much memory.
KEPT_BYTES = 16 * 1024 * 1024
KEPT_ALWAYS = 4

_Key: TypeAlias = tuple[int, int, tuple[int, ...]]


def load(ref: TensorRef) -> torch.Tensor:
    """One tensor in its own dtype and shape, on the CPU."""
    import torch

    raw = torch.empty(ref.length, dtype=torch.uint8)
    if ref.length:
        ref.source.read_into(ref.offset, raw.numpy().data)
    return raw.view(torch_dtype(ref.dtype)).reshape(ref.shape)


class FactorStore:
    """Loads factors; remembers the latest of them, so that the rows of one module share."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        """`arithmetic` says to which dtype and device factors go."""
        self._arithmetic = arithmetic
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, torch.Tensor] = OrderedDict()
        self._bytes = 0

    def factors(self, delta: Delta) -> Mapping[str, torch.Tensor]:
        """The delta's factors by role, on the arithmetic's device and in its dtype.

        Whole numbers (indices) keep their dtype: float32 would round large ones.
        """
        return {role: self._factor(ref) for role, ref in delta.roles.items()}

    def _factor(self, ref: TensorRef) -> torch.Tensor:
        import torch

        key = (id(ref.source), ref.offset, ref.shape)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        loaded = load(ref)
        check_finite(ref, loaded)
        dtype = self._arithmetic.dtype if ref.dtype.floating else loaded.dtype
        factor = loaded.to(device=self._arithmetic.device, dtype=dtype)
        if factor.is_cuda:
            torch.cuda.current_stream(factor.device).synchronize()  # others use other streams
        self._keep(key, factor)
        return factor

    def _keep(self, key: _Key, factor: torch.Tensor) -> None:
        size = factor.numel() * factor.element_size()
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = factor
            self._bytes += size
            while self._bytes > KEPT_BYTES and len(self._kept) > KEPT_ALWAYS:
                _, old = self._kept.popitem(last=False)
                self._bytes -= old.numel() * old.element_size()


def check_finite(ref: TensorRef, values: torch.Tensor) -> None:
    """InputError where a factor holds NaN or infinities."""
    import torch

    values = values.float() if values.element_size() == 1 else values
    if bool(torch.isfinite(values.sum(dtype=torch.float64))):
        return
    bad = (~torch.isfinite(values)).flatten().nonzero()
    if not len(bad):
        return
    message = f"{len(bad)} of {ref.elements} values are NaN or infinite, the first at {int(bad[0])}"
    hint = "training diverged; the merged model would be unusable"
    raise InputError(message, code=Code.NOT_FINITE, file=ref.file, tensor=ref.name, hint=hint)
