"""Which modules of an adapter a stored name leads to, in programs that know a checkpoint's names.

Such a program maps the names of the model that is loaded: dotted, or with `_` for every dot. A
fused module of it holds the rows of several modules of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from adaptool.names.diffusion import Family, Seat, families
from adaptool.readers.values import Applied, File

DENOISERS = ("unet", "transformer", "transformer_2", "prior")
DOWN = ("lora_down.weight", "lora_A.weight")
UP = ("lora_up.weight", "lora_B.weight")


@dataclass(frozen=True, slots=True)
class Target:
    """One module of the adapter, and its share of a stored module's outputs, of `of` shares."""

    module: str
    share: int = 1
    of: int = 1


def modules_of(
    path: str,
    modules: Collection[str],
    find: Callable[[Family, str], Seat | None],
    spelled: Callable[[str], str],
) -> tuple[Target, ...]:
    """The adapter's modules of the denoiser that `path` stands for; () for none.

    `find` looks a stored name up in a model's table; `spelled` writes a module as it is stored.
    """
    own = {_bare(module): module for module in modules if _denoises(module)}
    best: tuple[Target, ...] = ()
    for family in families().values():
        seat = find(family, path)
        best = max(best, tuple(_shares(seat, own)) if seat else (), key=len)
    same = tuple(Target(module) for bare, module in own.items() if spelled(bare) == path)
    return best if len(best) >= len(same) else same


def _shares(seat: Seat, own: Mapping[str, str]) -> Iterator[Target]:
    whole = sum(seat.rule.shares)
    for module, share in zip(seat.modules, seat.rule.shares, strict=True):
        if module in own:
            yield Target(own[module], share, whole)


def _bare(module: str) -> str:
    first, _, rest = module.partition(".")
    return rest if first in DENOISERS else module


def _denoises(module: str) -> bool:
    return not module.startswith(("text_encoder", "text_model."))


def grouped(file: File, endings: Collection[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Stored module -> ending -> key, and the keys with another ending."""
    found: dict[str, dict[str, str]] = {}
    others = []
    for key in file.tensors:
        ending = next((each for each in endings if key.endswith(f".{each}")), None)
        if ending is None:
            others.append(key)
        else:
            found.setdefault(key.removesuffix(f".{ending}"), {})[ending] = key
    return found, others


def products(file: File, keys: Mapping[str, str], targets: Collection[Target]) -> Iterator[Applied]:
    """What a pair of factors adds to each module: alpha / rank, where no alpha, or 0, is the rank.

    With a magnitude for each input, `(1, in)`, the norm runs over outputs.
    """
    a = next((keys[ending] for ending in DOWN if ending in keys), None)
    b = next((keys[ending] for ending in UP if ending in keys), None)
    if a is None or b is None:
        return
    rank, inner = file.shape(a)[0], prod(file.shape(a)[1:])
    alpha = file.number(keys["alpha"]) if "alpha" in keys else float(rank)
    scale = (alpha or float(rank)) / rank
    tuner, magnitude = _tuner(file, keys)
    for target in targets:
        out = file.shape(b)[0] * target.share // target.of
        sources = (a, b, *magnitude)
        yield Applied(f"{target.module}.weight", tuner, sources, (out, inner), rank, scale)


def _tuner(file: File, keys: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    if "dora_scale" not in keys:
        return "lora", ()
    shape = file.shape(keys["dora_scale"])
    by_input = shape[0] == 1 and len(shape) > 1 and shape[1] > 1
    return ("dora_input" if by_input else "dora"), (keys["dora_scale"],)
