"""One file per layout of an adapter; a layout is found by being here."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

from adaptool.discovery import marked
from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.layouts.pipeline_families import of_modules
from adaptool.layouts.strangers import refuse_stranger
from adaptool.model.adapter import Adapter
from adaptool.model.encoding import Destination, Encoded, Loss
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.store.adapter_files import GGUF, AdapterFiles

MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a layout can say of a file: the keys it claims, those it does not, and why."""

    claimed: int
    unclaimed: tuple[str, ...]
    why: str


class Layout(Protocol):
    """What a layout's file offers.

    `DETECT` and `LOSSY` are for people: by what a file is recognised, and what is lost in writing
    it ("" where it is only read).
    """

    TITLE: str
    DETECT: str
    LOSSY: str

    def sniff(self, files: AdapterFiles) -> Evidence:
        """Say which keys this layout can account for; no guess, no error."""
        ...

    def decode(self, files: AdapterFiles, reading: Reading = ...) -> Adapter:
        """Read the adapter; InputError where it contradicts itself.

        Tensors that it cannot use and whose names match a glob of `allow_drop` are left out.
        """
        ...


@runtime_checkable
class Writable(Layout, Protocol):
    """What a layout's file offers besides, where adapters can be written in it."""

    def losses(self, adapter: Adapter) -> tuple[Loss, ...]:
        """Say what the layout has no slot for, before anything is written."""
        ...

    def encode(self, adapter: Adapter, destination: Destination) -> Encoded:
        """Name and place every tensor; `losses` were dealt with before."""
        ...


@functools.cache
def layouts() -> Mapping[str, Layout]:
    """Every layout by name: the modules of this package that have a TITLE."""
    return cast("Mapping[str, Layout]", marked(__name__, __path__, "TITLE"))


def writable() -> Mapping[str, Writable]:
    """The layouts that can be written, by name."""
    return {name: layout for name, layout in layouts().items() if isinstance(layout, Writable)}


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Decode with the layout that claims every key, else with the one that claims the most.

    That one refuses the rest, or leaves out what `reading` allows. InputError where no layout
    claims a key, or two claim as many.
    """
    refuse_stranger(files)
    evidence = {name: layout.sniff(files) for name, layout in layouts().items()}
    most = max(found.claimed for found in evidence.values())
    if not most:
        _refuse_unclaimed(files)
    best = [name for name, found in evidence.items() if found.claimed == most]
    if len(best) > 1:
        _refuse_ambiguous(files, {name: evidence[name] for name in best})
    adapter = layouts()[best[0]].decode(files, reading)
    return adapter if adapter.architectures else _placed(adapter, reading)


def _placed(adapter: Adapter, reading: Reading) -> Adapter:
    """The adapter with the denoisers that its modules' names tell, where they are a denoiser's."""
    found = of_modules(adapter, reading.base)
    return replace(adapter, architectures=found) if found else adapter


def _refuse_ambiguous(files: AdapterFiles, best: Mapping[str, Evidence]) -> None:
    found = [
        f"{name} ({each.why}" + (f"; not {_listed(each.unclaimed)})" if each.unclaimed else ")")
        for name, each in best.items()
    ]
    message = f"keys of several layouts in one file: {', '.join(found)}"
    raise InputError(message, code=Code.LAYOUT_AMBIGUOUS, file=files.source.name)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")


# What a trainer's name begins with, to say what a file looks like whose keys are not read.
_LOOKS = (
    ("lora_unet_", "kohya"),
    ("lora_te", "kohya"),
    ("lora_transformer_", "OneTrainer"),
    ("lycoris_", "LyCORIS"),
    ("diffusion_model.", "ComfyUI"),
    ("unet.", "diffusers"),
    ("transformer.", "diffusers"),
    ("double_blocks.", "XLabs or BFL"),
)


def _refuse_unclaimed(files: AdapterFiles) -> None:
    names = list(files.tensors)
    if files.container == GGUF:
        message = f"a GGUF file whose {len(names)} tensors are no LoRA's"
        hint = "only GGUF adapters are read, not models; llama.cpp makes them of LoRAs"
        raise InputError(message, code=Code.FOREIGN_FORMAT, file=files.source.name, hint=hint)
    if not names:
        message = "no tensors, so no adapter"
        raise InputError(message, code=Code.NO_ADAPTER_TENSORS, file=files.source.name)
    looks = [look for prefix, look in _LOOKS if names[0].startswith(prefix)]
    guess = f"; it begins as keys of {looks[0]} do, and ends in another way" if looks else ""
    message = f"0 of {len(names)} keys recognised, the first is {names[0]!r}{guess}"
    hint = f"layouts that are read: {', '.join(layout.TITLE for layout in layouts().values())}"
    raise InputError(
        message, code=Code.KEYS_UNRECOGNISED, file=files.source.name, tensor=names[0], hint=hint
    )
