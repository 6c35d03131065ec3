"""What kohya keeps in a file's metadata: how it was trained (`ss_*`), what it is, its hashes.

`sshs_model_hash` is the SHA-256 of the bytes of all tensors; `sshs_legacy_hash` the first 8 digits
of that of 64 KiB at 1 MiB of the file as it would be with its `ss_*` metadata alone. Source:
sd-scripts, library/train_util.py, `precalculate_safetensors_hashes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from adaptool.model.derived import F32, F64, DerivedSource, array
from adaptool.model.encoding import Encoded, Written, in_safetensors
from adaptool.store.local import LocalSource
from adaptool.store.tensors import TensorRef

KEPT = ("ss_", "modelspec.", "sshs_")
HASHES = ("sshs_model_hash", "sshs_legacy_hash")
_LEGACY_START, _LEGACY_BYTES, _LEGACY_DIGITS = 0x100000, 0x10000, 8


def kept(metadata: Mapping[str, str]) -> dict[str, str]:
    """What of a file's metadata still holds for a converted one: all but the hashes."""
    return {
        name: text
        for name, text in metadata.items()
        if name.startswith(KEPT) and name not in HASHES
    }


def with_hashes(
    file: str, tensors: Sequence[Written], metadata: Mapping[str, str]
) -> dict[str, str]:
    """The metadata with both hashes, which readers compute where they are absent.

    They are left out where a tensor's numbers are yet to be computed.
    """
    if not all(_is_at_hand(tensor) for tensor in tensors):
        return dict(metadata)
    training = {name: text for name, text in metadata.items() if name.startswith("ss_")}
    plain = in_safetensors(file, tensors, training)
    whole, legacy = hashlib.sha256(), hashlib.sha256()
    stop = _LEGACY_START + _LEGACY_BYTES
    legacy.update(plain.header[_LEGACY_START:stop])
    for offset, content in _contents(plain):
        whole.update(content)
        legacy.update(content[max(0, _LEGACY_START - offset) : max(0, stop - offset)])
    digits = legacy.hexdigest()[:_LEGACY_DIGITS]
    return {**metadata, HASHES[0]: whole.hexdigest(), HASHES[1]: digits}


def _is_at_hand(tensor: Written) -> bool:
    """Whether planning can have its bytes: stored or moved ones, or what numpy rounds."""
    rounds = (tensor.ref.dtype, tensor.dtype) == (F64, F32)
    exact = tensor.ref.dtype == tensor.dtype or rounds
    return exact and _is_stored(tensor.ref)


def _is_stored(ref: TensorRef) -> bool:
    if isinstance(ref.source, DerivedSource):
        return all(_is_stored(parent) for parent in ref.source.parents)
    return isinstance(ref.source, LocalSource)


def _contents(encoded: Encoded) -> Iterator[tuple[int, bytes]]:
    for tensor, offset in zip(encoded.tensors, encoded.offsets, strict=True):
        values = array(tensor.ref)
        if tensor.ref.dtype != tensor.dtype:
            values = values.view("<f8").astype("<f4")
        yield offset, values.tobytes()
