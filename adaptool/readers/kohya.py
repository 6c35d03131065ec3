"""How sd-scripts and those who read its files look a LoRA up: names of the model, flattened.

A key begins with `lora_unet_` or a text encoder's `lora_te*_`, then comes the module's path with
`_` for every dot. A module's alpha is its own tensor. A key of no module is left out.
Source: sd-scripts, networks/lora.py, lora_flux.py, lora_sd3.py (their documented names).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from adaptool.names import text_encoders
from adaptool.readers.flat_names import Target, grouped, modules_of, products
from adaptool.readers.values import Applied, File, Loaded

PROGRAM = "sd-scripts"
ENDINGS = ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale")
# Which encoders of a pipeline a number stands for: T5 is the third, also where it is the second.
ENCODERS: Mapping[str, tuple[str, ...]] = {
    "lora_te_": ("text_encoder",),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lora_te3_": ("text_encoder_3", "text_encoder_2"),
}
UNET = "lora_unet_"


def read(file: File) -> Loaded:
    """What is made of the file."""
    stems, unread = grouped(file, ENDINGS)
    applied: list[Applied] = []
    for stem, keys in stems.items():
        found = tuple(products(file, keys, tuple(_targets(stem, file))))
        applied += found
        if not found:
            unread += keys.values()
    return Loaded(tuple(applied), unread=tuple(unread))


def _targets(stem: str, file: File) -> Iterator[Target]:
    if stem.startswith(UNET):
        yield from modules_of(
            stem.removeprefix(UNET),
            file.modules,
            lambda family, path: family.by_flat_original(path),
            _flat,
        )
    for prefix, components in ENCODERS.items():
        if stem.startswith(prefix):
            yield from _in_encoder(stem.removeprefix(prefix), components, file)


def _in_encoder(flat: str, components: tuple[str, ...], file: File) -> Iterator[Target]:
    """Its modules have `text_model.` in CLIP, whatever the adapter's library calls them."""
    for module in file.modules:
        first, _, rest = module.partition(".")
        path = rest if first in components else module if components[0] == "text_encoder" else ""
        stored = text_encoders.stored_path(path) if path else None
        if stored is not None and _flat(stored) == flat:
            yield Target(module)


def _flat(path: str) -> str:
    return path.replace(".", "_")
