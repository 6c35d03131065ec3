"""What a layout makes of an adapter: one weights file, its header final, and its documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptool.dtypes import Dtype
from adaptool.errors import InternalError
from adaptool.findings import Code, Finding
from adaptool.model.plan import Document
from adaptool.model.reading import BaseNames
from adaptool.store.header import canonical_order, encode_header, tensor_bytes
from adaptool.store.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Written:
    """One tensor of the output: its name there, where its numbers come from, its dtype there."""

    name: str
    ref: TensorRef
    dtype: Dtype


@dataclass(frozen=True, slots=True)
class Loss:
    """What a layout has no slot for: the names of the tensors concerned, and why."""

    tensors: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an adapter goes: `file` is the name of the one file, None for a directory.

    `bake`: readers there ignore patterns and rsLoRA, so every module gets alpha = r. `base`: what
    is known of the model that the adapter is for.
    """

    file: str | None = None
    bake: bool = False
    base: BaseNames | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """An adapter in a layout: `tensors` in file order, each at its absolute offset.

    What lies between them is zeros. `whole` is the file's size where it goes on behind the last.
    """

    file: str
    header: bytes
    tensors: tuple[Written, ...]
    offsets: tuple[int, ...]
    documents: tuple[Document, ...] = ()
    findings: tuple[Finding, ...] = ()
    whole: int = 0

    @property
    def size(self) -> int:
        """Bytes of the weights file."""
        ends = [
            offset + tensor_bytes(tensor.dtype, tensor.ref.shape)
            for offset, tensor in zip(self.offsets, self.tensors, strict=True)
        ]
        return max(self.whole, len(self.header), *ends)


def named_once(file: str, tensors: Sequence[Written]) -> dict[str, Written]:
    """The tensors by name; InternalError where two have one: the file would hold the last."""
    found: dict[str, Written] = {}
    for tensor in tensors:
        if tensor.name in found:
            message = "two tensors of this name were about to be written"
            raise InternalError(message, code=Code.INTERNAL, file=file, tensor=tensor.name)
        found[tensor.name] = tensor
    return found


def in_safetensors(
    file: str,
    tensors: Sequence[Written],
    metadata: Mapping[str, str],
    documents: tuple[Document, ...] = (),
    findings: tuple[Finding, ...] = (),
) -> Encoded:
    """A safetensors file in the order in which the library writes."""
    by_name = named_once(file, tensors)
    entries = canonical_order([(each.name, each.dtype, each.ref.shape) for each in tensors])
    header = encode_header(entries, dict(metadata))
    ordered, offsets, end = [], [], len(header)
    for name, dtype, shape in entries:
        ordered.append(by_name[name])
        offsets.append(end)
        end += tensor_bytes(dtype, shape)
    return Encoded(file, header, tuple(ordered), tuple(offsets), documents, findings)
