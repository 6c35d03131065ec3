"""Which architecture a diffusion adapter is for: decided once, when its file is read.

A file's names may be those of several architectures, as checkpoints or as diffusers names them.
The base decides where there is one; then what the file's own facts leave. Where what is left says
the same of every module, nothing needs to be decided here, and all of it goes along with the
adapter: a layout that has other names for one than for another asks for the base. Where it does
not, the file is refused.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.layouts.pipeline_names import (
    DENOISERS,
    TEXT_ENCODERS,
    Size,
    bare,
    denoiser_of,
    has_encoders,
    recorded,
)
from adaptool.model.adapter import Adapter
from adaptool.model.reading import BaseNames
from adaptool.names import text_encoders
from adaptool.names.architectures import (
    Architecture,
    Facts,
    architectures,
    knowing_most,
    narrowed,
    of_class,
)
from adaptool.names.diffusion import Family, Rows, Seat, families, known_module

Meaning = tuple[tuple[str, ...], tuple[object, ...]]
"""What a module's name says: the modules it stands for, and how their rows lie in it."""
# What stands before a denoiser's modules in checkpoints.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "transformer.", "")
_LIKELY_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """The modules of diffusers that a name stands for; `seat` where they share a fused one."""

    modules: tuple[str, ...]
    seat: Seat | None = None

    def rows(self, out: int, inner: int | None) -> tuple[Rows, ...]:
        """Which of the stored rows are whose, in order."""
        return ((((0, out),),)) if self.seat is None else self.seat.rows(out, inner)

    def within(self, component: str) -> Place:
        """The same modules by their full paths."""
        return replace(self, modules=tuple(f"{component}.{module}" for module in self.modules))

    @property
    def meaning(self) -> Meaning:
        """What two architectures must agree on."""
        if self.seat is None:
            return self.modules, ()
        rule = self.seat.rule
        rows = (rule.shares, rule.swap, rule.pair_only)
        return self.modules, rows if self.seat.fused or rule.swap or rule.pair_only else ()


@dataclass(frozen=True, slots=True)
class Spelling:
    """How one architecture's modules may be named: as its checkpoint has them, or as diffusers.

    `find` gives what a name stands for, None where it is none of its modules'.
    """

    architecture: Architecture
    original: bool
    find: Callable[[str, Size | None], Place | None]


@dataclass(frozen=True, slots=True)
class Decided:
    """The architectures that a denoiser may be, all of which read its names alike."""

    architectures: tuple[Architecture, ...] = ()
    original: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What an adapter carries along."""
        return tuple(each.name for each in self.architectures)

    @property
    def family(self) -> Family | None:
        """A table that reads the names; of several any, for they read them alike."""
        tabled = [each.family for each in self.architectures if each.family]
        return tabled[0] if tabled else None

    def component(self, paths: Iterable[str]) -> str:
        """diffusers' name of the denoiser."""
        found = {each.component for each in self.architectures}
        return found.pop() if len(found) == 1 else denoiser_of(list(paths))


@dataclass(frozen=True, slots=True)
class Told:
    """What a file and its caller say beside the names.

    `encoders`: the pipeline's text encoders that it has modules of, component -> kind. `original`:
    whether the layout's names are a checkpoint's where they may be diffusers' as well.
    """

    metadata: Mapping[str, str]
    base: BaseNames | None
    file: str
    encoders: Mapping[str, str] = field(default_factory=dict)
    original: bool = True


def decided(
    sizes: Mapping[str, Size | None],
    spellings: Sequence[Spelling],
    told: Told,
    settled: frozenset[str] = frozenset(),
) -> Decided:
    """The architectures whose spelling knows the most of these names, as far as facts tell them.

    MismatchError (exit 4) where those that are left read some name differently, unless it is
    `settled`: something else says what it stands for.
    """
    wanted = {each.name for each in of_base(told.base)} if told.base else set()
    readings = [_read(each, sizes) for each in spellings]
    of_wanted = [each for each in readings if each.spelling.architecture.name in wanted]
    pool = of_wanted if any(each.places for each in of_wanted) else readings
    most = max((len(each.places) for each in pool), default=0)
    if not most:
        return Decided()
    best = [each for each in pool if len(each.places) == most]
    best = [each for each in best if _has_encoders(each, told)] or best
    best = [each for each in best if each.spelling.original == told.original] or best
    left = _left(best, recorded(told.metadata))
    _refuse_contradictions(left, told, settled)
    found = dict.fromkeys(each.spelling.architecture.name for each in left)
    original = all(each.spelling.original for each in left)
    return Decided(tuple(architectures()[name] for name in found), original)


@dataclass(frozen=True, slots=True)
class _Reading:
    spelling: Spelling
    places: Mapping[str, Place]
    sizes: Mapping[str, Size | None]

    @property
    def facts(self) -> Facts:
        return Facts(
            {
                module: (size := self.sizes[name]) and size[1]
                for name, place in self.places.items()
                for module in place.modules
            }
        )

    def meanings(self, settled: frozenset[str]) -> frozenset[tuple[str, Meaning]]:
        return frozenset(
            (name, place.meaning) for name, place in self.places.items() if name not in settled
        )


def _has_encoders(reading: _Reading, told: Told) -> bool:
    return has_encoders(reading.spelling.architecture.family, told.encoders)


def _read(spelling: Spelling, sizes: Mapping[str, Size | None]) -> _Reading:
    found = ((name, spelling.find(name, size)) for name, size in sizes.items())
    return _Reading(spelling, {name: place for name, place in found if place}, sizes)


def _left(readings: Sequence[_Reading], said: frozenset[str]) -> list[_Reading]:
    """What each reading's own facts leave of them."""
    left = []
    everyone = [each.spelling.architecture for each in readings]
    for each in readings:
        kept = narrowed(everyone, replace(each.facts, said=said))
        if each.spelling.architecture in kept:
            left.append(each)
    return left or list(readings)


def _refuse_contradictions(
    readings: Sequence[_Reading], told: Told, settled: frozenset[str]
) -> None:
    meanings = list(dict.fromkeys(each.meanings(settled) for each in readings))
    if len(meanings) < 2:
        return
    name = min(name for name, _ in meanings[0] ^ meanings[1])
    models = " and of ".join(dict.fromkeys(each.spelling.architecture.name for each in readings))
    message = f"these names are those of {models}, which read {name!r} differently"
    hint = "--base CHECKPOINT tells which"
    if told.base is not None:
        hint = "the base has the names of none of them: give the checkpoint it was trained on"
    raise MismatchError(message, code=Code.LAYOUT_AMBIGUOUS, file=told.file, tensor=name, hint=hint)


def of_base(base: BaseNames) -> tuple[Architecture, ...]:
    """The architecture of a base: by its class, else by what it has; () where nobody knows it."""
    named = of_class(str((base.config or {}).get("_class_name", "")))
    if named is not None:
        return (named,)
    prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in base.shapes)), "")
    inner = {
        name.removeprefix(prefix).rpartition(".")[0]: shape[1] if len(shape) > 1 else None
        for name, shape in base.shapes.items()
        if name.startswith(prefix) and (prefix or bare(name) == name)
    }
    originals = Counter(name for path in inner for name in _seats_of(path))
    most = max(originals.values(), default=0)
    modules = knowing_most(inner)
    known = sum(modules[0].knows(path) for path in inner) if modules else 0
    if max(most, known) < _LIKELY_SHARE * len(inner) or not inner:
        return ()
    if most > known:
        return tuple(architectures()[name] for name, count in originals.items() if count == most)
    found = narrowed(modules, Facts(inner))
    return tuple(each for each in found if each.family) or found


def of_modules(adapter: Adapter, base: BaseNames | None = None) -> tuple[str, ...]:
    """The architectures of an adapter whose modules have diffusers' names already; () for none."""
    inputs = {
        bare(delta.module): delta.terms.inner or None
        for delta in adapter.deltas
        if _denoises(delta.module)
    }
    found = knowing_most(inputs) if inputs else ()
    encoders = {
        component: text_encoders.kind_of(bare(delta.module))
        for delta in adapter.deltas
        if (component := delta.module.partition(".")[0]) in TEXT_ENCODERS
    }
    found = tuple(each for each in found if has_encoders(each.family, encoders)) or found
    wanted = of_base(base) if base is not None and inputs else ()
    of_wanted = tuple(each for each in wanted if any(each.knows(path) for path in inputs))
    said = recorded({**adapter.metadata, "base_model_name_or_path": adapter.base or ""})
    left = of_wanted or narrowed(found, Facts(inputs, said))
    return tuple(each.name for each in left)


def common(several: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The architectures that all of several adapters may be for; of none in common all of them."""
    given = [names for names in several if names]
    shared = [name for name in given[0] if all(name in names for names in given)] if given else []
    return tuple(shared or dict.fromkeys(name for names in given for name in names))


def _denoises(module: str) -> bool:
    component = module.partition(".")[0]
    if component in (*DENOISERS, *TEXT_ENCODERS):
        return component in DENOISERS
    return known_module(module)


def tables_of(names: Sequence[str]) -> tuple[Family | None, ...]:
    """The tables of architectures; None for each that has none, and where there is none at all."""
    return tuple(architectures()[name].family for name in names) or (None,)


@functools.lru_cache(1 << 16)
def _seats_of(path: str) -> Mapping[str, Seat]:
    """Table -> its seat at a checkpoint's module path."""
    found = ((name, family.by_original(path)) for name, family in families().items())
    return {name: seat for name, seat in found if seat is not None}


@functools.lru_cache(1 << 16)
def _flat_seats_of(flat: str) -> Mapping[str, Seat]:
    found = ((name, family.by_flat_original(flat)) for name, family in families().items())
    return {name: seat for name, seat in found if seat is not None}


@functools.cache
def dotted() -> tuple[Spelling, ...]:
    """The spellings of names that keep their dots."""

    def original(family: Family) -> Callable[[str, Size | None], Place | None]:
        return lambda path, size: _by_original(family, path, size) or _member(family, path)

    def module(each: Architecture) -> Callable[[str, Size | None], Place | None]:
        return lambda path, _: Place((path,)) if each.knows(path) else None

    found = architectures().values()
    return (
        *(
            Spelling(each, original=True, find=original(each.family))
            for each in found
            if each.family
        ),
        *(Spelling(each, original=False, find=module(each)) for each in found),
    )


@functools.cache
def flattened() -> tuple[Spelling, ...]:
    """The spellings of names with `_` for every dot; a checkpoint's and diffusers' may be mixed."""

    def find(each: Architecture) -> Callable[[str, Size | None], Place | None]:
        def of(name: str, size: Size | None) -> Place | None:
            seat = _flat_seats_of(name).get(each.name)
            if seat is not None and (size is None or seat.fits(*size)):
                return Place(seat.modules, seat)
            path = each.by_flat(name)
            return None if path is None else Place((path,))

        return of

    return tuple(
        Spelling(each, original=False, find=find(each)) for each in architectures().values()
    )


def _by_original(family: Family, path: str, size: Size | None) -> Place | None:
    seat = _seats_of(path).get(family.name)
    fits = seat is not None and (size is None or not size[0] or seat.fits(*size))
    return Place(seat.modules, seat) if seat is not None and fits else None


def _member(family: Family, path: str) -> Place | None:
    """`img_attn.qkv.0`: the first member of a fused module, stored apart."""
    fused, _, place = path.rpartition(".")
    seat = _seats_of(fused).get(family.name) if place.isdigit() else None
    if seat is not None and seat.fused and int(place) < len(seat.modules):
        return Place((seat.modules[int(place)],))
    return None
