"""The torch-free door for small tensors: a kohya alpha, a quantization state."""

from __future__ import annotations

from adaptool.errors import ResourceError
from adaptool.findings import Code
from adaptool.store.tensors import TensorRef

MOST_BYTES = 64 * 1024


def read_small(ref: TensorRef) -> bytes:
    """The bytes of a tensor of at most 64 KiB; ResourceError where it is larger."""
    if ref.length > MOST_BYTES:
        message = f"has {ref.length} bytes; a value read while planning has at most {MOST_BYTES}"
        hint = "this tensor is not what its name says"
        code = Code.LIMIT_EXCEEDED
        raise ResourceError(message, code=code, file=ref.file, tensor=ref.name, hint=hint)
    buffer = bytearray(ref.length)
    ref.source.read_into(ref.offset, memoryview(buffer))
    return bytes(buffer)
