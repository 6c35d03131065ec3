"""One file per layout of an adapter; a layout is found by being here."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from adaptool.discovery import marked
from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.model.adapter import Adapter
from adaptool.model.encoding import Destination, Encoded, Loss
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.store.adapter_files import AdapterFiles


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a layout can say of a file: the keys it claims, those it does not, and why."""

    claimed: int
    unclaimed: tuple[str, ...]
    why: str


class Layout(Protocol):
    """What a layout's file offers."""

    TITLE: str

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
    """Decode with the one layout that claims keys; InputError lists what nobody claims."""
    if not files.tensors:
        message = "no tensors, so no adapter"
        raise InputError(message, code=Code.NO_ADAPTER_TENSORS, file=files.source.name)
    evidence = {name: layout.sniff(files) for name, layout in layouts().items()}
    claiming = [name for name, found in evidence.items() if found.claimed]
    if len(claiming) > 1:
        message = f"keys of several layouts in one file: {', '.join(claiming)}"
        raise InputError(message, code=Code.LAYOUT_AMBIGUOUS, file=files.source.name)
    if not claiming:
        _refuse_unclaimed(files)
    return layouts()[claiming[0]].decode(files, reading)


# How other layouts name their keys, to say what a file looks like before they can be read.
_LOOKS = (
    ("lora_unet_", "kohya"),
    ("lora_te", "kohya"),
    ("lora_transformer_", "OneTrainer or kohya"),
    ("diffusion_model.", "ComfyUI"),
    ("unet.", "diffusers"),
    ("transformer.", "diffusers"),
    ("double_blocks.", "XLabs or BFL"),
)


def _refuse_unclaimed(files: AdapterFiles) -> None:
    names = list(files.tensors)
    looks = [look for prefix, look in _LOOKS if names[0].startswith(prefix)]
    guess = f"; looks like the {looks[0]} layout, which is not read yet" if looks else ""
    message = f"0 of {len(names)} keys recognised, the first is {names[0]!r}{guess}"
    hint = "PEFT's keys begin with base_model.model."
    raise InputError(
        message, code=Code.KEYS_UNRECOGNISED, file=files.source.name, tensor=names[0], hint=hint
    )
