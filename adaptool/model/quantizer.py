"""What a storage scheme of quantized weights offers; the seam between bases and quantizers.

A quantizer is a module of `adaptool.quantizers`: its file name is its name, and being there
registers it. It turns a group of stored tensors into one plain weight, bit for bit as the library
that wrote them does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from adaptool.dtypes import Dtype
from adaptool.store.tensors import TensorRef

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Scheme:
    """What is true of a storage scheme.

    `title` for people; `library` decodes it in the tests; `skip_list` is the key of
    `quantization_config` that names modules left in 16 bit (None: the scheme has none). `caution`:
    which loader does not honour that list.
    """

    title: str
    library: str
    skip_list: str | None
    caution: str = ""


@dataclass(frozen=True, slots=True)
class Packed:
    """One weight as a scheme stores it.

    `name` and `shape` are the plain weight's, `dtype` is what the library decodes to; `roles` are
    the stored tensors, every one of which belongs to this weight alone. `settings` are the
    scheme's, JSON-able. `granule`: rows are decoded in multiples of it.
    """

    name: str
    scheme: str
    roles: Mapping[str, TensorRef]
    shape: tuple[int, ...]
    dtype: Dtype
    settings: Mapping[str, Any]
    granule: int = 1

    @property
    def rows(self) -> int:
        """Rows of the weight as a matrix: all axes but the last."""
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """The last axis."""
        return self.shape[-1]


class Parts(Protocol):
    """Reads the stored tensors of one packed weight."""

    def whole(self, role: str) -> torch.Tensor:
        """All of a stored tensor in its own dtype and shape; kept for the next question."""
        ...

    def span(self, role: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of a stored tensor, flat, in its own dtype."""
        ...


class Quantizer(Protocol):
    """What a quantizer's file offers."""

    SCHEME: Scheme

    def settings(self, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """This scheme's settings out of a `quantization_config`; None where it is another's."""
        ...

    def packed(
        self, tensors: Mapping[str, TensorRef], settings: Mapping[str, Any]
    ) -> Iterator[Packed]:
        """Every weight that is stored this way; InputError where its tensors contradict."""
        ...

    def decode(self, parts: Parts, packed: Packed, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) as (rows, columns), in `packed.dtype`, as the library decodes them."""
        ...

    def skipping(self, config: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        """`quantization_config` with `modules` entered as left in 16 bit."""
        ...


class Encoder(Protocol):
    """Stores new plain values in a scheme's own format, in two passes over their rows.

    Both passes see every row once, in order, in blocks of a multiple of `granule` rows (the last
    one excepted). Between them it holds no more than the scales.
    """

    granule: int

    def measure(self, values: torch.Tensor, start: int) -> None:
        """First pass: rows from `start` on, (rows, columns) in the packed weight's dtype."""
        ...

    def settle(self) -> tuple[Packed, Mapping[str, torch.Tensor]]:
        """All rows were measured: the weight as it will be decoded, and its new parts by role.

        All of them but "weight", whose codes `encode` gives.
        """
        ...

    def encode(self, values: torch.Tensor, start: int) -> torch.Tensor:
        """Second pass: the codes of the same rows, as the bytes that follow the last ones'.

        InputError where a value does not fit.
        """
        ...


@runtime_checkable
class Encoding(Protocol):
    """What a quantizer offers besides that can write its own format."""

    def rewritten(self, packed: Packed) -> Mapping[str, tuple[int, ...]]:
        """The roles that new values change, with their new shapes; the others stay as they are.

        MismatchError (UNSUPPORTED) with the reason where this weight's variant cannot be written.
        """
        ...

    def encoder(self, packed: Packed) -> Encoder:
        """An encoder for new values of `packed`."""
        ...
