"""Diffusion models' modules under their two names: the checkpoint's and diffusers'.

A module of the checkpoint (`double_blocks.3.img_attn.qkv`) holds the rows of one or several modules
of diffusers (`transformer_blocks.3.attn.to_q`, `to_k`, `to_v`). The tables that say so stand in
`diffusion_tables.py`; nothing here needs a model or a weight.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from adaptool.names import diffusion_tables as tables
from adaptool.names.templates import Table, filled

Rows = tuple[tuple[int, int], ...]
"""Rows of a matrix as ranges (start, stop), in the order in which they are taken."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a table. `shares`: how the rows are divided among `modules`.

    `ratio`: outputs to inputs, where the table says it.
    """

    original: str
    modules: tuple[str, ...]
    shares: tuple[int, ...]
    swap: bool = False
    pair_only: bool = False
    scale: bool = False
    ratio: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Seat:
    """One module of a checkpoint, and the modules of diffusers whose rows it holds, in order."""

    original: str
    modules: tuple[str, ...]
    rule: Rule

    @property
    def fused(self) -> bool:
        """Whether it holds several modules."""
        return len(self.modules) > 1

    def fits(self, out: int, inner: int | None = None) -> bool:
        """Whether a matrix (out, inner) can be divided so; `inner` None: not known.

        The first part of a fused attention is q, which has as many rows as the module has inputs.
        """
        if self.rule.ratio is not None and inner is not None:
            return out * self.rule.ratio[1] == inner * self.rule.ratio[0]
        unit, rest = divmod(out, sum(self.rule.shares))
        if rest or not self.fused:
            return not rest
        return inner is None or unit * self.rule.shares[0] == inner

    def rows(self, out: int, inner: int | None = None) -> tuple[Rows, ...]:
        """For each of `modules`, where its rows stand among the `out` rows of the checkpoint's.

        Only for what `fits`. `inner` decides whether the halves of an adaptive norm are swapped
        where that differs from block to block (SD3): None means they are not.
        """
        unit = out // sum(self.rule.shares)
        ends = list(itertools.accumulate(share * unit for share in self.rule.shares))
        starts = [0, *ends[:-1]]
        if self._swapped(out, inner):
            half = out // 2
            return (((half, out), (0, half)),)
        return tuple(((start, end),) for start, end in zip(starts, ends, strict=True))

    def _swapped(self, out: int, inner: int | None) -> bool:
        if self.rule.pair_only:
            return inner is not None and out == 2 * inner
        return self.rule.swap

    def leaf(self, original: str) -> str:
        """The parameter's own name in diffusers: a norm's `scale` is its `weight`."""
        return "weight" if self.rule.scale and original == "scale" else original

    def original_leaf(self, leaf: str) -> str:
        """The parameter's own name in the checkpoint."""
        return "scale" if self.rule.scale and leaf == "weight" else leaf


class Family:
    """One architecture's table, asked from either side, with dots or flattened."""

    def __init__(self, name: str, component: str, table: str, counts: Mapping[str, int]) -> None:
        """`component`: diffusers' name of the model in its pipeline.

        `counts`: how many blocks the published model has, by the first part of a module's path.
        """
        self.name = name
        self.component = component
        self.counts = MappingProxyType(dict(counts))
        self.rules = tuple(_parsed(table))
        self._tables: dict[tuple[bool, bool], Table[tuple[Rule, int]]] = {}

    def by_original(self, path: str) -> Seat | None:
        """The seat at a checkpoint's module path."""
        return self._seat(path, original=True, flat=False)

    def by_module(self, path: str) -> Seat | None:
        """The seat that holds diffusers' module `path`."""
        return self._seat(path, original=False, flat=False)

    def by_flat_original(self, name: str) -> Seat | None:
        """The seat whose checkpoint path is `name` with `_` for every dot."""
        return self._seat(name, original=True, flat=True)

    def by_flat_module(self, name: str) -> str | None:
        """diffusers' module path that is `name` with `_` for every dot."""
        found = self._table(original=False, flat=True).find(name)
        if found is None:
            return None
        (rule, place), numbers = found
        return filled(rule.modules[place], numbers)

    def _seat(self, path: str, *, original: bool, flat: bool) -> Seat | None:
        found = self._table(original=original, flat=flat).find(path)
        if found is None:
            return None
        (rule, _), numbers = found
        modules = tuple(filled(module, numbers) for module in rule.modules)
        return Seat(filled(rule.original, numbers), modules, rule)

    def _table(self, *, original: bool, flat: bool) -> Table[tuple[Rule, int]]:
        if (original, flat) not in self._tables:
            entries = self._entries(original=original)
            self._tables[original, flat] = Table(entries, flat=flat)
        return self._tables[original, flat]

    def _entries(self, *, original: bool) -> Iterator[tuple[str, tuple[Rule, int]]]:
        for rule in self.rules:
            names = (rule.original,) if original else rule.modules
            for place, name in enumerate(names):
                yield name, (rule, place)


def _parsed(table: str) -> Iterator[Rule]:
    for line in table.splitlines():
        if not line:
            continue
        original, _, right = line.partition(" = ")
        names, _, cut = right.partition(" /")
        modules = _modules(names.split())
        ratio, divided = cut.startswith("by "), cut[:1].isdigit()
        numbers = tuple(map(int, cut.removeprefix("by ").split(":"))) if ratio or divided else ()
        yield Rule(
            original,
            modules,
            shares=numbers if divided else (1,) * len(modules),
            swap=cut == "swap",
            pair_only=cut == "swap-pair",
            scale=cut == "scale",
            ratio=(numbers[0], numbers[1]) if ratio else None,
        )


def _modules(names: Sequence[str]) -> tuple[str, ...]:
    """The first name is whole; the others stand beside it, with `^` beside its parent."""
    first, *siblings = names
    parent = first.rpartition(".")[0]
    above = parent.rpartition(".")[0]
    return (
        first,
        *(f"{above}.{name[1:]}" if name[0] == "^" else f"{parent}.{name}" for name in siblings),
    )


@functools.cache
def families() -> Mapping[str, Family]:
    """Every architecture by name; where two fit a set of names alike, the first is the likelier."""
    double, single = "transformer_blocks", "single_transformer_blocks"
    found = (
        Family(
            "sd",
            "unet",
            tables.unet((True, True, True, False), (False, True, True, True), "0"),
            {},
        ),
        Family("sdxl", "unet", tables.unet((False, True, True), (True, True, False), "#"), {}),
        Family("flux", "transformer", tables.FLUX, {double: 19, single: 38}),
        Family("flux2", "transformer", tables.FLUX2, {double: 8, single: 48}),
        Family("sd3", "transformer", tables.SD3, {double: 24}),
        Family("qwen-image", "transformer", tables.QWEN_IMAGE, {double: 60}),
        Family("z-image", "transformer", tables.Z_IMAGE, {"layers": 30}),
        Family("lumina2", "transformer", tables.LUMINA2, {"layers": 26}),
        Family("wan", "transformer", tables.WAN, {"blocks": 40}),
        Family("hunyuan-video", "transformer", tables.HUNYUAN_VIDEO, {double: 20, single: 40}),
        Family("anima", "transformer", tables.ANIMA, {double: 28}),
    )
    return MappingProxyType({family.name: family for family in found})


def known_module(path: str) -> bool:
    """Whether some architecture of diffusers has this module."""
    return _is_known(path, original=False)


def known_original(path: str) -> bool:
    """Whether some published checkpoint has this module."""
    return _is_known(path, original=True)


def _is_known(path: str, *, original: bool) -> bool:
    table, heads = _of_all(original=original)
    # Most files are no diffusion model's: their names' first parts say so.
    return path.partition(".")[0] in heads and table.find(path) is not None


@functools.cache
def _of_all(*, original: bool) -> tuple[Table[None], frozenset[str]]:
    rules = [rule for family in families().values() for rule in family.rules]
    groups = ((rule.original,) if original else rule.modules for rule in rules)
    names = [name for group in groups for name in group]
    heads = frozenset(name.partition(".")[0] for name in names)
    return Table((name, None) for name in names), heads
