"""Finding and checking the stored tensors of a packed weight; every refusal names the tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.quantizer import Packed
from adaptool.names.families import CONV1D
from adaptool.store.tensors import TensorRef

_HINT = "the checkpoint is damaged or was cut; download or quantize it again"


def require(tensors: Mapping[str, TensorRef], name: str, owner: TensorRef) -> TensorRef:
    """The tensor `name`, without which `owner` cannot be decoded; InputError where it is absent."""
    found = tensors.get(name)
    if found is None:
        refuse(owner, f"is packed, and its {name} is missing")
    return found


def refuse(
    ref: TensorRef, message: str, *, code: Code = Code.BASE_QUANTIZED, field: str | None = None
) -> NoReturn:
    """InputError about a stored tensor."""
    raise InputError(
        message, code=code, file=ref.file, tensor=ref.name, field=field, hint=_HINT
    ) from None


def refuse_encoding(packed: Packed, message: str) -> NoReturn:
    """MismatchError: this variant of a scheme is read, and not written."""
    raise MismatchError(
        message,
        code=Code.UNSUPPORTED,
        file=next(iter(packed.roles.values())).file,
        tensor=packed.name,
        field="--quantized",
        hint="--quantized touched keeps every other module quantized",
    )


def check_shape(ref: TensorRef, shape: Sequence[int], reason: str) -> None:
    """InputError where a part's shape is not what `reason` asks."""
    if ref.shape != tuple(shape):
        message = f"has shape {list(ref.shape)}; {reason} asks for {list(shape)}"
        refuse(ref, message, code=Code.SHAPE_MISMATCH)


def check_elements(ref: TensorRef, count: int, reason: str) -> None:
    """InputError where a part does not hold the number of elements that `reason` asks."""
    if ref.elements != count:
        message = f"has {ref.elements} elements; {reason} asks for {count}"
        refuse(ref, message, code=Code.SHAPE_MISMATCH)


def check_axes(ref: TensorRef, count: int) -> None:
    """InputError where a part has another number of axes, or an empty one."""
    if len(ref.shape) != count or 0 in ref.shape:
        message = f"has shape {list(ref.shape)}; it should have {count} axes, none empty"
        refuse(ref, message, code=Code.SHAPE_MISMATCH)


def check_dtype(ref: TensorRef, *allowed: str) -> None:
    """InputError where a part's dtype (safetensors name) is none of those allowed."""
    if ref.dtype.name not in allowed:
        message = f"is {ref.dtype.name}; this part of a packed weight is {' or '.join(allowed)}"
        refuse(ref, message, code=Code.DTYPE_NOT_COMPUTABLE)


def check_name_free(tensors: Mapping[str, TensorRef], name: str) -> None:
    """InputError where a weight lies there packed and plain at once."""
    if name in tensors:
        refuse(tensors[name], "is stored twice: as it is, and packed")


def refuse_conv1d(family: str | None, ref: TensorRef) -> None:
    """MismatchError in families whose linear layers are transformers' Conv1D.

    Their packed weights lie transposed, so the decoded one would be the plain one's transpose,
    which the shape of a square weight would not show.
    """
    if family in CONV1D:
        message = f"the Conv1D layers of {family} are packed transposed, which is not read yet"
        hint = "merge into the 16-bit original"
        code = Code.UNSUPPORTED
        raise MismatchError(message, code=code, file=ref.file, tensor=ref.name, hint=hint)
