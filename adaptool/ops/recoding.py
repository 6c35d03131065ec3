"""`--quantized keep`: what the adapters change is stored again in the base's own format.

A packed weight has several stored parts. Those that new values change become rows that are made
anew; the others, and every weight that is not touched, stay byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from adaptool.model.plan import Recoded, Row
from adaptool.model.quantizer import Encoding, Packed
from adaptool.ops.drafts import Draft, Drafts
from adaptool.quantizers import quantizers
from adaptool.quantizers.stored_parts import refuse_encoding
from adaptool.store.header import tensor_bytes
from adaptool.store.tensors import TensorRef


def recoded(
    drafts: Drafts, packed: Mapping[str, Packed], stored: Mapping[str, Sequence[Draft]]
) -> tuple[Drafts, list[str]]:
    """The drafts with every packed weight in its stored parts, and the weights made anew.

    MismatchError where a touched weight cannot be written in its format.
    """
    made: Drafts = {}
    anew = []
    for name, draft in drafts.items():
        if name not in packed:
            made[name] = draft
            continue
        parts = [replace(part, stored=True) for part in stored[name]]
        if draft.is_touched:
            _recode(parts, draft, packed[name])
            anew.append(name)
        made.update({part.name: part for part in parts})
    return made, anew


def _recode(parts: Sequence[Draft], draft: Draft, packed: Packed) -> None:
    """Mark the stored parts of a touched weight that new values change."""
    shapes = _rewritten(draft, packed)
    plain = _plain(draft, packed)
    roles = {ref.name: role for role, ref in packed.roles.items()}
    for part in parts:
        role = roles[part.name]
        if role in shapes:
            part.source = _reshaped(part.source, shapes[role])
            part.recoded = Recoded(role, packed, plain)


def _rewritten(draft: Draft, packed: Packed) -> Mapping[str, tuple[int, ...]]:
    """Roles and shapes of the parts that change; MismatchError where they cannot be written."""
    quantizer = quantizers()[packed.scheme]
    if not isinstance(quantizer, Encoding):
        message = f"is stored as {quantizer.SCHEME.title}; only FP8 and NF4 are written again,"
        refuse_encoding(packed, f"{message} since others need calibration or have coarser steps")
    if draft.shape != packed.shape:
        message = f"the adapter makes it {list(draft.shape)}, it is packed as {list(packed.shape)}"
        refuse_encoding(packed, message)
    return quantizer.rewritten(packed)


def _plain(draft: Draft, packed: Packed) -> Row:
    """The merged weight before it is stored: a row without a seat."""
    return Row(
        name=draft.name,
        dtype=packed.dtype,
        shape=draft.shape,
        file=draft.source.file,
        offset=0,
        length=tensor_bytes(packed.dtype, draft.shape),
        source=draft.source,
        pieces=tuple(draft.pieces),
        blends=tuple(draft.blends),
        fold=draft.fold,
        replaced=draft.replaced_by is not None,
    )


def _reshaped(ref: TensorRef, shape: tuple[int, ...]) -> TensorRef:
    if ref.shape == shape:
        return ref
    return replace(ref, shape=shape, length=tensor_bytes(ref.dtype, shape))
