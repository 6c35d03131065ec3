"""How ComfyUI looks an adapter up: the names of the checkpoint that is loaded, with their dots.

`diffusion_model.<module>` and `text_encoders.<encoder>.transformer.<module>`. Without an alpha the
scale is 1. `diff` and `diff_b` are added as they are. A key of no module is left out with a line in
the log. Source: ComfyUI of 2026, comfy/lora.py and comfy/weight_adapter (their key maps).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from adaptool.names import text_encoders
from adaptool.readers.flat_names import DOWN, UP, Target, grouped, modules_of, products
from adaptool.readers.values import Applied, File, Loaded

PROGRAM = "ComfyUI"
DIFFERENCES = {"diff": "weight", "diff_b": "bias"}
ENDINGS = (*DOWN, *UP, "alpha", "dora_scale", *DIFFERENCES)
MODEL, ENCODER, INNER = "diffusion_model.", "text_encoders.", ".transformer."


def read(file: File) -> Loaded:
    """What ComfyUI does with the file."""
    stems, unread = grouped(file, ENDINGS)
    applied: list[Applied] = []
    for stem, keys in stems.items():
        targets = tuple(_targets(stem, file))
        found = (*products(file, keys, targets), *_differences(keys, targets))
        applied += found
        if not found:
            unread += keys.values()
    return Loaded(tuple(applied), unread=tuple(unread))


def _differences(keys: Mapping[str, str], targets: tuple[Target, ...]) -> Iterator[Applied]:
    for ending, leaf in DIFFERENCES.items():
        if ending in keys:
            for target in targets:
                yield Applied(f"{target.module}.{leaf}", "shift", (keys[ending],))


def _targets(stem: str, file: File) -> Iterator[Target]:
    if stem.startswith(MODEL):
        yield from modules_of(
            stem.removeprefix(MODEL),
            file.modules,
            lambda family, path: family.by_original(path),
            lambda path: path,
        )
        return
    name, _, path = stem.removeprefix(ENCODER).partition(INNER)
    for module in file.modules:
        first, _, rest = module.partition(".")
        if first == ENCODER[:-1]:  # an encoder that no pipeline known here has
            if rest == f"{name}.{path}":
                yield Target(module)
        elif first.startswith("text_encoder") or module == path:
            inner = rest if first.startswith("text_encoder") else module
            if text_encoders.comfyui_path(inner) == path and _may_be(name, first, inner):
                yield Target(module)


def _may_be(name: str, component: str, path: str) -> bool:
    """Whether an encoder of this name may be that component, by the order of pipelines."""
    kind = text_encoders.kind_of(path)
    if kind == "clip":
        return name in {"text_encoder_2": ("clip_g", "clip_l")}.get(component, ("clip_l",))
    return name not in ("clip_l", "clip_g")
