"""Where diffusers' modules lie in a checkpoint that has the published names of a diffusion model.

Single-file checkpoints (FLUX.1, SDXL, SD3, Wan) name and fuse modules their own way. From names
alone: which rows of a fused module are whose follows from the tables' shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

from adaptool.names import open_clip
from adaptool.names.diffusion import Family, Seat, families
from adaptool.names.renames import Part, Placement

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
# What only these checkpoints' names begin with; other bases are not looked at name by name.
_BEGIN = (
    "double_blocks.",
    "joint_blocks.",
    "input_blocks.",
    "blocks.0.self_attn.",
    "noise_refiner.",
)
_DENOISERS = ("unet", "transformer")
# Components and the prefixes of their encoders, whose modules keep transformers' names.
_ENCODERS = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": ("text_encoders.clip_g.transformer.", "text_encoders.t5xxl.transformer."),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.",),
}


class DiffusionNames:
    """The tensor names of one checkpoint, to be asked for diffusers' parameters."""

    def __init__(self, names: Iterable[str]) -> None:
        """Remember the names; they are looked at when the first parameter is asked for."""
        self._names = frozenset(names)

    @cached_property
    def _found(self) -> tuple[Family, str] | None:
        """The architecture and the prefix, where the names are the published ones."""
        begin = tuple(prefix + name for prefix in PREFIXES for name in _BEGIN)
        if not any(name.startswith(begin) for name in self._names):
            return None
        prefix = next(p for p in PREFIXES if any(n.startswith(p) for n in self._names))
        modules = {n.removeprefix(prefix).rpartition(".")[0] for n in self._names}
        scores = {
            name: (
                sum(family.by_original(module) is not None for module in modules),
                sum(family.by_module(module) is not None for module in modules),
            )
            for name, family in families().items()
        }
        best = max(scores, key=lambda name: scores[name][0])
        published = scores[best][0] > max(score for _, score in scores.values())
        return (families()[best], prefix) if published else None

    def placements(self, parameter: str) -> tuple[Placement, ...]:
        """The tensors of a parameter of diffusers' model; () where the checkpoint has none."""
        component, _, rest = parameter.partition(".")
        encoder = self._of_encoder(component, rest)
        if encoder is not None or self._found is None:
            return () if encoder is None else (encoder,)
        family, prefix = self._found
        path, _, leaf = (rest if component in _DENOISERS else parameter).rpartition(".")
        seat = family.by_module(path)
        if seat is None:
            return ()
        tensor = f"{prefix}{seat.original}.{seat.original_leaf(leaf)}"
        if tensor not in self._names:
            return ()
        if self._swapped(seat, prefix):
            halves = (Part(0, 0, 2), Part(0, 1, 2))
            return (
                Placement(tensor, halves[:1], halves[1:]),
                Placement(tensor, halves[1:], halves[:1]),
            )
        return (Placement(tensor, of_tensor=_share(seat, path)),)

    def _of_encoder(self, component: str, parameter: str) -> Placement | None:
        for prefix in _ENCODERS.get(component, ()):
            if prefix + parameter in self._names:
                return Placement(prefix + parameter)
        prefixes = open_clip.PREFIXES.get(component, ())
        place = open_clip.placement(parameter) if prefixes else None
        for prefix in prefixes:
            if place is not None and prefix + place.tensor in self._names:
                return replace(place, tensor=prefix + place.tensor)
        return None

    def _swapped(self, seat: Seat, prefix: str) -> bool:
        if not seat.rule.pair_only:
            return seat.rule.swap
        # The last block's text stream ends in its attention: it has a norm, but no MLP.
        block = seat.original.rpartition(".adaLN_modulation")[0]
        return f"{prefix}{block}.mlp.fc1.weight" not in self._names


def _share(seat: Seat, module: str) -> tuple[Part, ...]:
    """The module's rows among those of the checkpoint's."""
    if not seat.fused:
        return ()
    shares, place = seat.rule.shares, seat.modules.index(module)
    return (Part(0, sum(shares[:place]), sum(shares), width=shares[place]),)
