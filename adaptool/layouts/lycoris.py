"""LyCORIS' layout: kohya's names with the endings of other algorithms than LoRA.

LoHa, LoKr, IA3, GLoRA, whole differences and those of norms, and LoCon among them. What LyCORIS
computes forward is what counts: its own merge takes alpha / r twice for LoHa and LoKr. Source:
LyCORIS 4.1.3, modules/*.py (`weight_list`), kohya.py and wrapper.py (prefixes).
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.errors import AdaptoolError, MismatchError, gathered
from adaptool.findings import Code
from adaptool.layouts import Evidence
from adaptool.layouts.double_deltas import summed
from adaptool.layouts.kohya_keys import (
    COMPONENTS,
    DENOISER,
    LORA_ENDINGS,
    PIPELINE,
    Grouped,
    grouped,
    may_drop,
    refuse_leftover,
)
from adaptool.layouts.kohya_names import places
from adaptool.layouts.lycoris_deltas import LOKR, deltas_of, size_of
from adaptool.layouts.lycoris_keys import LYCORIS_ENDINGS
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.store.adapter_files import AdapterFiles

TITLE = "LyCORIS"
DETECT = (
    "kohya's names, or `lycoris_*`, with `.hada_w1_a`, `.lokr_w1`, `.diff`, `.w_norm` and others"
)
LOSSY = "read only; `--as lora` brings it into layouts that are written"

_PREFIXES: Mapping[str, str] = {
    **COMPONENTS,
    "lycoris": PIPELINE,
    "oft_unet": DENOISER,
    "oft_te": "text_encoder",
}
# Recognised, and what they are: their effect cannot be computed here.
_REFUSED: Mapping[str, str] = {
    "oft_blocks": "an orthogonal transform (Diag-OFT or BOFT)",
    "oft_diag": "an orthogonal transform (Diag-OFT)",
    "rescale": "an orthogonal transform (Diag-OFT or BOFT)",
    "q_layer.weight": "T-LoRA, which acts by timestep",
    "p_layer.weight": "T-LoRA, which acts by timestep",
    "lambda_layer": "T-LoRA, which acts by timestep",
    "bm.weight": "GLoRA with a Tucker core",
    "bias_indices": "a sparse residual",
    "bias_values": "a sparse residual",
    "bias_size": "a sparse residual",
}
_ALL = {**LORA_ENDINGS, **LYCORIS_ENDINGS, **{ending: ending for ending in _REFUSED}}


def sniff(files: AdapterFiles) -> Evidence:
    """Only where a key is none of kohya's own; then kohya's beside it are LyCORIS' as well."""
    found = grouped(files.tensors, _ALL, _PREFIXES)
    others = set(LYCORIS_ENDINGS.values()) | set(_REFUSED)
    own = [
        flat
        for flat, roles in found.modules.items()
        if roles.keys() & others or flat.startswith("lycoris_")
    ]
    if not own:
        return Evidence(0, tuple(files.tensors), "no ending that LyCORIS alone writes")
    unclaimed = tuple(ref.name for ref in found.leftover)
    claimed = len(files.tensors) - len(unclaimed)
    return Evidence(claimed, unclaimed, f"{len(own)} modules have LyCORIS' endings")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError where it contradicts itself.

    MismatchError for algorithms that are recognised and cannot be computed (OFT, T-LoRA).
    """
    found = grouped(files.tensors, _ALL, _PREFIXES)
    _refuse_unsupported(found, files)
    dropped = [ref for ref in found.leftover if may_drop(ref.name, reading)]
    refuse_leftover([ref for ref in found.leftover if ref not in dropped], files, TITLE)
    sizes = {flat: size_of(roles) for flat, roles in found.modules.items()}
    named = places(sizes, _PREFIXES, reading.base, files, _whole(found))
    deltas: list[Delta] = []
    errors: list[AdaptoolError] = []
    for flat, roles in found.modules.items():
        try:
            deltas += deltas_of(flat, roles, named.places[flat], reading)
        except AdaptoolError as error:
            error.file = error.file or files.source.name
            errors.append(error)
    if errors:
        raise gathered(errors)
    once, notes = summed(deltas, files.source.name)
    return Adapter(
        name=files.name,
        layout="lycoris",
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


def _whole(found: Grouped) -> frozenset[str]:
    """The modules whose tensors are not divided: blocks and norms cross the borders."""
    return frozenset(
        flat for flat, roles in found.modules.items() if roles.keys() & (LOKR | {"dora_scale"})
    )


def _refuse_unsupported(found: Grouped, files: AdapterFiles) -> None:
    for roles in found.modules.values():
        for role, ref in roles.items():
            if role in _REFUSED:
                message = f"belongs to {_REFUSED[role]}; not supported"
                raise MismatchError(
                    message,
                    code=Code.TUNER_UNSUPPORTED,
                    file=files.source.name,
                    tensor=ref.name,
                )
