"""kohya's layout (sd-scripts and what reads its files): `lora_unet_a_b_c.lora_down.weight`.

Every module has its own `alpha`; 0, or none, means the rank. The files of LyCORIS' other
algorithms, which share the names, are another layout's. Metadata `ss_*` tells of the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from adaptool.errors import AdaptoolError, MismatchError, gathered
from adaptool.findings import Code
from adaptool.layouts import Evidence
from adaptool.layouts.double_deltas import summed
from adaptool.layouts.kohya_encode import encode, losses
from adaptool.layouts.kohya_factors import INPUT_NORM, Trained, delta_of, trained
from adaptool.layouts.kohya_keys import (
    COMPONENTS,
    LORA_ENDINGS,
    grouped,
    may_drop,
    refuse_leftover,
)
from adaptool.layouts.kohya_names import places
from adaptool.layouts.pipeline_families import Place
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.fusing import split
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef

__all__ = ["DETECT", "LOSSY", "TITLE", "decode", "encode", "losses", "sniff"]

TITLE = "kohya"
DETECT = "keys `lora_unet_*` or `lora_te*_*` with `.lora_down.weight`, `.lora_up.weight`, `.alpha`"
LOSSY = (
    "holds LoRA, LoCon and DoRA of the modules of diffusion pipelines; whole tensors, embeddings "
    "and other tuners have no place in it"
)
# Prefixes that another trainer writes beside kohya's: then the whole file is that trainer's.
_FOREIGN = ("lora_transformer_", "lora_prior_")


def sniff(files: AdapterFiles) -> Evidence:
    """kohya's are `lora_unet_`, `lora_te*_` with kohya's endings."""
    found = grouped(files.tensors, LORA_ENDINGS, COMPONENTS)
    unclaimed = tuple(ref.name for ref in found.leftover)
    if any(name.startswith(_FOREIGN) for name in unclaimed):
        return Evidence(0, tuple(files.tensors), "keys of OneTrainer")
    claimed = len(files.tensors) - len(unclaimed)
    return Evidence(claimed, unclaimed, f"{claimed} keys begin with lora_unet_ or lora_te")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError (with every other problem) where it contradicts itself."""
    found = grouped(files.tensors, LORA_ENDINGS, COMPONENTS)
    dropped = [ref for ref in found.leftover if may_drop(ref.name, reading)]
    refuse_leftover([ref for ref in found.leftover if ref not in dropped], files, "kohya")
    modules, errors = _trained(found.modules, reading)
    if errors:
        raise gathered(errors)
    sizes = {flat: (each.pair.out, each.pair.a.shape[1]) for flat, each in modules.items()}
    whole = frozenset(flat for flat, each in modules.items() if each.tuner == INPUT_NORM)
    named = places(sizes, COMPONENTS, reading.base, files, whole)
    deltas = [delta for flat in modules for delta in deltas_at(modules[flat], named.places[flat])]
    once, notes = summed(deltas, files.source.name)
    return Adapter(
        name=files.name,
        layout="kohya",
        config={},
        deltas=once,
        replaced=(),
        leftover=(),
        tensors=files.tensors,
        findings=(*files.findings, *notes),
        dropped=tuple(ref.name for ref in dropped),
        metadata=files.header.metadata,
        architectures=named.architectures,
    )


def _trained(
    modules: Mapping[str, Mapping[str, TensorRef]], reading: Reading
) -> tuple[dict[str, Trained], list[AdaptoolError]]:
    found, errors = {}, []
    for flat, roles in modules.items():
        try:
            found[flat] = trained(flat, roles, reading)
        except AdaptoolError as error:
            errors.append(error)
    return found, errors


def deltas_at(found: Trained, place: Place) -> Iterator[Delta]:
    """The deltas of the real modules that one stored module stands for.

    MismatchError where a norm runs over all outputs of a fused one.
    """
    pair = found.pair
    if len(place.modules) > 1 and found.tuner == INPUT_NORM:
        message = "DoRA's norm runs over the outputs of a fused module; its parts have no own"
        hint = "--base with a checkpoint that has it fused"
        raise MismatchError(
            message,
            code=Code.UNSUPPORTED,
            file=pair.a.file,
            tensor=pair.b.name,
            hint=hint,
        )
    # A norm over outputs has one number for each input, which no part of the outputs takes along.
    magnitude = pair.magnitude if found.tuner == INPUT_NORM else None
    parts = split(
        replace(pair, magnitude=None) if magnitude else pair,
        place.rows(pair.out, pair.a.shape[1]),
    )
    for module, part in zip(place.modules, parts, strict=True):
        if part is not None:
            whole = replace(part, magnitude=magnitude or part.magnitude)
            yield delta_of(module, found.tuner, whole)
