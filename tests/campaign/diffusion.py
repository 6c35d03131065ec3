"""The campaign's other half: adapters of diffusers' denoisers across layouts.

A case trains random modules of a denoiser, in diffusers' own layout, and sends the file through
one or two commands. What diffusers (or PEFT) then loads is compared, delta by delta, with B A in
float64.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import adaptool
from adaptool.errors import AdaptoolError, InternalError
from campaign.bases import Void
from campaign.denoisers import DENOISERS, Deltas, Denoiser, loaded_by_diffusers, loaded_by_peft
from campaign.judging import Outcome, Wrong

LAYOUTS = ("diffusers", "kohya", "comfyui", "peft")
READ_ALONE = {"diffusers", "kohya"}  # diffusers' loader takes these layouts of every denoiser


@dataclass(frozen=True, slots=True)
class Drawn:
    """Plain data of a case: the modules of each adapter, the layouts on the way, the operation."""

    seed: int
    architecture: str
    modules: tuple[tuple[str, ...], ...]
    layouts: tuple[str, ...]
    operation: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def case_of(seed: int) -> Drawn:
    """The same case for the same seed."""
    rng = random.Random(seed)
    name = rng.choice(sorted(DENOISERS))
    pool = _trainable(DENOISERS[name])
    verb = rng.choice(("convert", "convert", "combine", "resize"))
    count = 2 if verb == "combine" else 1
    layouts = tuple(rng.choice(LAYOUTS) for _ in range(rng.choice((1, 2))))
    options = {
        "weights": [rng.choice((1.0, 0.5, -0.3)) for _ in range(count)],
        "ranks": [rng.choice((1, 2, 4)) for _ in range(count)],
        "alphas": [rng.choice((1, 3, 8)) for _ in range(count)],
        "base": rng.random() < 0.3,
    }
    modules = tuple(_some(rng, pool) for _ in range(count))
    return Drawn(seed, name, modules, layouts, {"verb": verb, "options": options})


def _trainable(denoiser: Denoiser) -> list[str]:
    """Modules of the blocks; a third of the draws may take any module."""
    return sorted(denoiser.modules())


def _some(rng: random.Random, pool: Sequence[str]) -> tuple[str, ...]:
    """All attention projections, those of one block, or a few of anything."""
    attention = [name for name in pool if "attn" in name or "attention" in name] or list(pool)
    way = rng.random()
    if way < 0.4:
        return tuple(attention)
    if way < 0.7:
        block = ".".join(rng.choice(attention).split(".")[:2])
        return tuple(name for name in attention if name.startswith(f"{block}."))
    return tuple(sorted(rng.sample(list(pool), min(len(pool), rng.choice((1, 3, 8))))))


def judge(case: Drawn, folder: Path) -> Outcome:
    """Agreed, refused, wrong, crash or void."""
    try:
        _run(case, folder)
    except Void as void:
        return Outcome("void", str(void))
    except InternalError as error:
        return Outcome("crash", str(error).replace(str(folder), "")[:400], str(error.code))
    except AdaptoolError as error:
        return Outcome("refused", str(error).replace(str(folder), "")[:400], str(error.code))
    except Wrong as wrong:
        return Outcome("wrong", str(wrong).replace(str(folder), "")[:400])
    return Outcome("agreed")


def _run(case: Drawn, folder: Path) -> None:
    denoiser = DENOISERS[case.architecture]
    options = case.operation["options"]
    made = [
        _saved(denoiser, names, case, place, folder) for place, names in enumerate(case.modules)
    ]
    for file, deltas in made:
        _judge(denoiser, "diffusers", file, deltas, original=True)
    base = _base(denoiser, folder) if options["base"] else None
    wanted = made[0][1]
    path = made[0][0]
    if case.operation["verb"] == "combine":
        start = adaptool.convert(
            path, folder / "start", to=case.layouts[0], base=base, threads=1
        ).out
        path = _file(start, case.layouts[0])
        out = folder / "sum"
        files = [path, made[1][0]]
        adaptool.combine(*files, out=out, weights=options["weights"], base=base, threads=1)
        wanted = _sum([deltas for _, deltas in made], options["weights"])
        _judge_anywhere(denoiser, out, wanted)
        return
    layout = "diffusers"
    for place, layout in enumerate(case.layouts):
        out = folder / f"step{place}"
        adaptool.convert(path, out, to=layout, base=base, threads=1)
        path = _file(out, layout)
        _judge(denoiser, layout, path, wanted)
    if case.operation["verb"] == "resize":
        out = folder / ("resized" if path.is_dir() else "resized.safetensors")
        adaptool.resize(path, out, error=0.0, dtype="float32", threads=1)
        path = out
        _judge(denoiser, layout, path, wanted)
    if layout not in READ_ALONE:
        adaptool.convert(path, folder / "end", to="diffusers", base=base, threads=1)
        _judge(denoiser, "diffusers", _file(folder / "end", "diffusers"), wanted)


def _file(out: Path, layout: str) -> Path:
    """A PEFT folder is read whole; the others are one file in it."""
    if layout == "peft" or out.is_file():
        return out
    return next(iter(sorted(out.glob("*.safetensors"))))


def _base(denoiser: Denoiser, folder: Path) -> Path:
    path = folder / "base"
    model: Any = denoiser.build()
    model.save_pretrained(path)
    return path


def _saved(
    denoiser: Denoiser, names: Sequence[str], case: Drawn, place: int, folder: Path
) -> tuple[Path, Deltas]:
    """A file as diffusers saves it, and what it adds to each module."""
    numbers = torch.Generator().manual_seed(case.seed + place)
    options = case.operation["options"]
    rank, alpha = options["ranks"][place], options["alphas"][place]
    shapes, tensors, deltas = denoiser.modules(), {}, {}
    for name in names:
        out, inner, *kernel = shapes[name]
        a = torch.randn(rank, inner, *kernel, generator=numbers)
        b = torch.randn(out, rank, *[1] * len(kernel), generator=numbers)
        tensors[f"{denoiser.component}.{name}.lora_A.weight"] = a
        tensors[f"{denoiser.component}.{name}.lora_B.weight"] = b
        product = b.flatten(1).double() @ a.flatten(1).double()
        deltas[name] = (alpha / rank * product).reshape(shapes[name])
    settings = {f"{denoiser.component}.r": rank, f"{denoiser.component}.lora_alpha": alpha}
    settings[f"{denoiser.component}.target_modules"] = list(names)
    folder.mkdir(exist_ok=True)
    path = folder / f"adapter{place}.safetensors"
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})
    return path, deltas


def _sum(parts: Sequence[Deltas], weights: Sequence[float]) -> Deltas:
    total: Deltas = {}
    for deltas, weight in zip(parts, weights, strict=True):
        for name, delta in deltas.items():
            total[name] = total.get(name, torch.zeros_like(delta)) + weight * delta
    return total


def _judge_anywhere(denoiser: Denoiser, out: Path, wanted: Deltas) -> None:
    """In whatever layout the first input's decided."""
    if (out / "adapter_config.json").exists():
        _judge(denoiser, "peft", out, wanted)
        return
    file = out if out.is_file() else next(iter(sorted(out.glob("*.safetensors"))))
    _judge(denoiser, "comfyui", file, wanted)
    adaptool.convert(file, out.with_name("plain"), to="diffusers", threads=1)
    _judge(denoiser, "diffusers", _file(out.with_name("plain"), "diffusers"), wanted)


def _judge(
    denoiser: Denoiser, layout: str, path: Path, wanted: Deltas, *, original: bool = False
) -> None:
    """Compare what the layout's loader applies; a ComfyUI file counts where diffusers takes it."""
    try:
        read = loaded_by_peft if layout == "peft" else loaded_by_diffusers
        found = read(denoiser, path)
    except Exception as error:
        if original:
            raise Void(f"diffusers does not load its own: {type(error).__name__}") from error
        if layout == "comfyui" or (layout == "kohya" and denoiser.component != "unet"):
            return  # diffusers' converters know these by sizes of the real models
        raise Wrong(f"{layout} is not loaded: {type(error).__name__}: {error}") from error
    # PEFT warns of modules without tensors; elsewhere one whose delta is zero changes nothing.
    more = {n for n in found.keys() - wanted.keys() if layout == "peft" or found[n].any()}
    lost = sorted((wanted.keys() - found.keys()) | more)
    off = [name for name in wanted.keys() & found.keys() if not _close(found[name], wanted[name])]
    if not lost and not off:
        return
    if original:
        raise Void("diffusers loads its own otherwise")
    if layout == "comfyui" or (layout == "kohya" and _known_to_differ(denoiser, path, wanted)):
        return
    raise Wrong(f"{layout}: {len(lost)} lost or more {lost[:3]}, {len(off)} off {sorted(off)[:3]}")


def _known_to_differ(denoiser: Denoiser, path: Path, wanted: Deltas) -> bool:
    """What diffusers reads in part, or with other scales, although the file is right.

    It takes ComfyUI's names and the original names of kohya's files of few denoisers only, and
    mixed alphas of a UNet not at all.
    """
    return denoiser.original_names or _holds(path, wanted)


def _holds(path: Path, wanted: Deltas) -> bool:
    """Whether kohya's own arithmetic finds every delta under the flat name of its module."""
    if path.is_dir():
        return False
    tensors = load_file(path)
    for name, delta in wanted.items():
        flat = f"lora_unet_{name.replace('.', '_')}"
        down, up = tensors.get(f"{flat}.lora_down.weight"), tensors.get(f"{flat}.lora_up.weight")
        alpha = tensors.get(f"{flat}.alpha")
        if down is None or up is None or alpha is None:
            return False
        product = up.flatten(1).double() @ down.flatten(1).double()
        if not _close(float(alpha) / len(down) * product, delta):
            return False
    return True


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    error = float((one.flatten() - other.flatten()).abs().max())
    return one.numel() == other.numel() and error <= 1e-4 * float(other.abs().max())
