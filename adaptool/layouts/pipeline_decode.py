"""From the modules of a diffusion file to an adapter in canonical form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from adaptool.errors import AdaptoolError, InputError, gathered
from adaptool.findings import Code, Finding, Severity
from adaptool.layouts.double_deltas import summed
from adaptool.layouts.kohya_factors import PLAIN, check_factor, trained
from adaptool.layouts.kohya_keys import may_drop, refuse_leftover
from adaptool.layouts.lycoris_deltas import deltas_of, size_of
from adaptool.layouts.pipeline_families import (
    Decided,
    Place,
    Spelling,
    Told,
    decided,
    dotted,
    tables_of,
)
from adaptool.layouts.pipeline_keys import Stem
from adaptool.layouts.pipeline_names import CLIP, DENOISER, DENOISERS, Size, text_encoder_of
from adaptool.model.adapter import Adapter, Delta, Form, Replaced, Terms
from adaptool.model.derived import F32, reshaped, scaled
from adaptool.model.fusing import taken_rows
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.names import text_encoders
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

Configs = Callable[[str], Mapping[str, Any] | None]
"""A component's LoRA config, where the file has one."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a layout read of its file's keys.

    `replaced` are whole tensors by the name of their parameter in the denoiser. `configs` gives a
    component's LoRA config: its alpha serves modules that have none of their own.
    """

    layout: str
    stems: Sequence[Stem]
    leftover: Sequence[TensorRef] = ()
    replaced: Mapping[str, TensorRef] | None = None
    configs: Configs | None = None


# Layouts that have diffusers' names; trainers write a checkpoint's names below their prefixes too.
_OF_DIFFUSERS = frozenset({"diffusers", "onetrainer"})


def adapter_of(files: AdapterFiles, reading: Reading, found: Found) -> Adapter:
    """The adapter; InputError lists what was wrong, or is nobody's."""
    original = found.layout not in _OF_DIFFUSERS
    names = Names.of(found.stems, files, reading, original=original)
    dropped = [ref for ref in found.leftover if may_drop(ref.name, reading)]
    refuse_leftover([ref for ref in found.leftover if ref not in dropped], files, found.layout)
    deltas: list[Delta] = []
    errors: list[AdaptoolError] = []
    for stem in found.stems:
        try:
            deltas += _deltas(stem, names, reading, found.configs)
        except AdaptoolError as error:
            error.file = error.file or files.source.name
            errors.append(error)
    replaced = list(_replaced(found.replaced or {}, names))
    if errors:
        raise gathered(errors)
    once, notes = summed(deltas, files.source.name)
    return Adapter(
        name=files.name,
        layout=found.layout,
        config={},
        deltas=once,
        replaced=tuple(replaced),
        leftover=(),
        tensors=files.tensors,
        findings=(*files.findings, *notes, *_notes(names, found)),
        dropped=tuple(ref.name for ref in dropped),
        metadata=files.header.metadata,
        architectures=names.decided.names,
    )


@dataclass(frozen=True, slots=True)
class Names:
    """How one file's denoiser is to be read; `component` is what diffusers calls it."""

    decided: Decided
    component: str

    @classmethod
    def of(
        cls, stems: Sequence[Stem], files: AdapterFiles, reading: Reading, *, original: bool
    ) -> Self:
        """By the names and sizes of its modules; MismatchError where several models have them.

        `original`: whether the layout's names are a checkpoint's where they may be diffusers' too.
        """
        sizes = _sizes(stems)
        encoders = {
            stem.component.removeprefix(CLIP): text_encoders.kind_of(stem.path)
            for stem in stems
            if not _denoises(stem)
        }
        file = files.source.name
        told = Told(files.header.metadata, reading.base, file, encoders, original=original)
        found = decided(sizes, dotted(), told)
        return cls(found, found.component(sizes))

    def place(self, path: str, out: int | None, inner: int | None) -> Place:
        """What a module's name stands for: itself where nobody knows it, nothing where it is none.

        `out` and `inner` are its sizes as far as its tensors tell them.
        """
        if not self.decided.original or self.decided.family is None:
            return Place((path,))
        size = None if out is None else (out, inner)
        found = (each.find(path, size) for each in dotted() if self._reads(each))
        return next((place for place in found if place is not None), Place(()))

    def _reads(self, spelling: Spelling) -> bool:
        """The checkpoint's names come first, then diffusers' own: trainers mix them."""
        return spelling.architecture.family is self.decided.family


def _sizes(stems: Sequence[Stem]) -> dict[str, Size]:
    """Of the denoiser's modules, as far as their tensors tell."""
    return {
        stem.path: size_of(_normal(stem.roles)) or (0, None) for stem in stems if _denoises(stem)
    }


def _denoises(stem: Stem) -> bool:
    return stem.component in (DENOISER, *DENOISERS)


def _normal(roles: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """LyCORIS' roles: PEFT's magnitude has one number for each output, in any shape."""
    normal = {role: ref for role, ref in roles.items() if role not in {"magnitude", "difference"}}
    magnitude = roles.get("magnitude")
    if magnitude is not None:
        normal["dora_scale"] = reshaped(magnitude, (magnitude.elements,))
    return normal


def _notes(names: Names, found: Found) -> Iterator[Finding]:
    if not names.decided.architectures and any(map(_denoises, found.stems)):
        message = "no one architecture has these module names; they are kept as they are"
        yield Finding(Code.KEYS_UNRECOGNISED, Severity.NOTE, message)


def _deltas(stem: Stem, names: Names, reading: Reading, configs: Configs | None) -> Iterator[Delta]:
    roles = _normal(stem.roles)
    component, place = _placed(stem, roles, names)
    shift = roles.pop("diff_b", None) if "up" in roles else None
    config = configs(component) if configs and "alpha" not in roles else None
    if config and reading.alpha is None and reading.scale is None and "up" in roles:
        reading = replace(reading, scale=_scaling(config, stem.path, roles))
    scaling = 1.0
    if roles:
        deltas = list(deltas_of(stem.path, roles, place, reading))
        scaling = deltas[0].terms.scaling if deltas else 1.0
        yield from deltas
    if shift is not None:
        yield from _shifts(shift, 1.0, scaling, place)
    if "difference" in stem.roles:
        yield from _shifts(stem.roles["difference"], scaling, scaling, place)


def _scaling(config: Mapping[str, Any], path: str, roles: Mapping[str, TensorRef]) -> float:
    """What the component's LoRA config gives this module."""
    pair = trained(path, roles, AS_IT_STANDS).pair
    shapes = {"A": pair.a.shape, "B": pair.b.shape}
    return tuners()[PLAIN].terms(config, path, shapes).scaling


def _placed(stem: Stem, roles: Mapping[str, TensorRef], names: Names) -> tuple[str, Place]:
    """The component, and the modules in it; InputError where there are none."""
    component = stem.component
    if component.startswith(CLIP):
        clip = component.removeprefix(CLIP)
        tables = tables_of(names.decided.names)
        component = text_encoder_of(clip, tables) or f"text_encoders.{clip}"
    if not _denoises(stem):
        return component, Place((f"{component}.{stem.path}",))
    component = names.component if component == DENOISER else component
    out, inner = size_of(roles) or (None, None)
    place = names.place(stem.path, out or None, inner)
    if not place.modules:
        family = ", ".join(names.decided.names)
        message = f"({out}, {inner}) is no module of {family} that can be read"
        name = next(iter(stem.roles.values())).name
        raise InputError(message, code=Code.KEYS_UNRECOGNISED, tensor=name)
    return component, place.within(component)


def _shifts(ref: TensorRef, factor: float, scaling: float, place: Place) -> Iterator[Delta]:
    """A bias's difference times `factor`, at its module's scaling: PEFT knows one for both."""
    check_factor(ref)
    out = ref.shape[0]
    for module, rows in zip(place.modules, place.rows(out, None), strict=True):
        part = ref if rows == ((0, out),) else taken_rows(ref, rows)
        value = scaled(part, factor / scaling) if scaling else part
        terms = Terms(Form.VECTOR, value.shape[0], 1, scaling or factor)
        dtype = None if value is part else F32
        yield Delta(module, f"{module}.bias", "shift", {"difference": value}, terms, dtype)


def _replaced(tensors: Mapping[str, TensorRef], names: Names) -> Iterator[Replaced]:
    for parameter, ref in tensors.items():
        path, _, leaf = parameter.rpartition(".")
        place = names.place(path, None, None)
        if len(place.modules) != 1:
            message = "names no parameter of diffusers' model alone"
            raise InputError(message, code=Code.KEYS_UNRECOGNISED, file=ref.file, tensor=ref.name)
        own = place.seat.leaf(leaf) if place.seat else leaf
        yield Replaced(f"{names.component}.{place.modules[0]}.{own}", ref)
