"""How PEFT reads an adapter: which modules its config selects, which keys it then looks for.

A module that is selected is wrapped: its own parameters lie one `base_layer` deeper, and its
factors beside that. Whatever key of the file is none of the wrapped model's is left out without a
word; a key of the model that the file lacks keeps its initial numbers, with a warning. A saved
module that lacks a key stops it.
Source: PEFT 0.21.2, `inject_adapter`, `set_peft_model_state_dict`, `lora/layer.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from adaptool.model.base_modules import BaseModules, modules_of
from adaptool.names.patterns import PatternTable
from adaptool.names.selection import Selection
from adaptool.readers.values import Applied, File, Loaded, Refusal
from adaptool.tuners import tuners

PROGRAM = "PEFT 0.21.2"
PREFIX = "base_model.model."
BASE_LAYER = "base_layer"
ROWS = "token_adapter.trainable_tokens_delta"
ROWS_BASE = "token_adapter.base_layer"
# What the two tasks save unasked, whichever of them the model has.
CLASSIFIERS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score")}
# The order in which modules register the stacks that they hold; the first is wrapped innermost.
REGISTERED = (
    *("gate_up_proj", "gate_up_proj_bias", "gate_proj", "w1", "v1", "up_proj", "w2"),
    *("down_proj", "down_proj_bias", "w3"),
)
EMBEDDING = "embed_tokens"


def read(file: File) -> Loaded:
    """What PEFT does with the file, which is a directory's or holds its config in its metadata.

    A pipeline's component is a model of its own, in which names lack the component's.
    """
    component = _component(file)
    if not component:
        return _read(file)
    names = {name.removeprefix(component): name for name in file.parameters}
    loaded = _read(replace(file, parameters=frozenset(names)))
    applied = tuple(
        replace(each, parameter=names.get(each.parameter, each.parameter))
        for each in loaded.applied or ()
    )
    return replace(loaded, applied=applied)


def _component(file: File) -> str:
    """What all parameters of the adapter begin with, and no key of the file."""
    firsts = {name.partition(".")[0] + "." for name in file.parameters}
    if len(firsts) != 1:
        return ""
    (first,) = firsts
    return "" if any(key.startswith(PREFIX + first) for key in file.tensors) else first


def _read(file: File) -> Loaded:
    config = file.documents.get("adapter_config.json")
    if config is None:
        config = json.loads(file.metadata["adapter_config"])
    model = _Model.of(config, file)
    if config.get("peft_type") != "LORA":
        return _of_another_kind(file, model, str(config.get("peft_type")))
    reading = _Reading(file, config, model, _Scaling.of(config), _tuner(config))
    reading.wrapped()
    reading.by_name()
    reading.whole()
    return reading.loaded()


@dataclass(frozen=True, slots=True)
class _Model:
    """The model that the adapter is loaded into, wrapped as the config says."""

    known: BaseModules
    selection: Selection
    wrapped: frozenset[str]
    stacks: Mapping[str, tuple[str, ...]]
    saved: frozenset[str]

    @classmethod
    def of(cls, config: Mapping[str, Any], file: File) -> _Model:
        known = modules_of(file.parameters, file.base)
        selection = Selection.of(config)
        stacks: dict[str, list[str]] = {}
        for parameter in sorted({*known.parameters, *file.parameters}):
            if selection.takes_parameter(parameter):
                module, _, leaf = parameter.rpartition(".")
                stacks.setdefault(module, []).append(leaf)
        unasked = CLASSIFIERS.get(str(config.get("task_type")), ())
        endings = (*selection.saved, *unasked)
        return cls(
            known,
            selection,
            frozenset(filter(selection.takes, known.modules)),
            {name: tuple(sorted(found, key=_registration)) for name, found in stacks.items()},
            frozenset(name for name in known.modules if endings and name.endswith(endings)),
        )

    def depth(self, module: str) -> int:
        """How many layers are wrapped around it."""
        return (module in self.wrapped) + len(self.stacks.get(module, ()))

    def is_saved(self, module: str) -> bool:
        """Whether it, or what holds it, is saved whole."""
        parts = module.split(".")
        return any(".".join(parts[: end + 1]) in self.saved for end in range(len(parts)))

    def is_attention(self, module: str) -> bool:
        """Whether it is an nn.MultiheadAttention, which is wrapped with its output projection."""
        known = self.known
        return f"{module}.in_proj_weight" in known.parameters


@dataclass(frozen=True, slots=True)
class _Scaling:
    """Rank and scale of every name, as the config's tables have them."""

    rank: int
    alpha: float
    ranks: PatternTable[int]
    alphas: PatternTable[float]
    rslora: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Scaling:
        return cls(
            config["r"],
            config["lora_alpha"],
            PatternTable(config.get("rank_pattern") or {}, field="rank_pattern"),
            PatternTable(config.get("alpha_pattern") or {}, field="alpha_pattern"),
            bool(config.get("use_rslora")),
        )

    def at(self, name: str) -> tuple[int, float]:
        """Rank and scale."""
        rank, alpha = self.ranks.get(name, self.rank), self.alphas.get(name, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)


def _tuner(config: Mapping[str, Any]) -> str:
    """Our name of the formula that the config's switches choose."""
    init = str(config.get("init_lora_weights") or "").lower()
    if config.get("use_dora"):
        return "dora"
    for name, tuner in tuners().items():
        declared = tuner.DECLARATION
        if declared.peft_type == "LORA" and (
            (declared.switch and config.get(declared.switch))
            or (declared.init and declared.init == init)
        ):
            return name
    return "lora"


def _registration(name: str) -> tuple[int, str]:
    return (REGISTERED.index(name) if name in REGISTERED else len(REGISTERED), name)


@dataclass(slots=True)
class _Reading:
    """The keys of the file, and what was made of them so far."""

    file: File
    config: Mapping[str, Any]
    model: _Model
    scaling: _Scaling
    tuner: str
    used: set[str] = field(default_factory=set)
    applied: list[Applied] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    inner: set[str] = field(default_factory=set)

    def loaded(self) -> Loaded:
        """All of it; what no step used is unread."""
        unread = tuple(name for name in self.file.tensors if name not in self.used)
        return Loaded(
            tuple(self.applied),
            unread,
            tuple(self.missing),
            tuple(self.faults),
            tuple(self.refused),
        )

    def wrapped(self) -> None:
        """The factors of every module that is selected."""
        for module in sorted(self.model.wrapped):
            if module in self.model.stacks:
                self.faults.append((module, "selected itself and by the name of its parameter"))
            self._factors(module, f"{module}.weight", module, 1.0)
            out = f"{module}.{BASE_LAYER}.out_proj"
            if self.model.is_attention(module) or self._has(f"{out}.lora_A.weight"):
                # Scaled once by the layer and once by the attention around it.
                self.inner.add(f"{module}.out_proj")
                self._factors(out, f"{module}.out_proj.weight", module, 2.0)

    def by_name(self) -> None:
        """The factors of parameters selected by name: the first registered is the innermost."""
        for module, leaves in self.model.stacks.items():
            for place, leaf in enumerate(leaves):
                path = module + f".{BASE_LAYER}" * (len(leaves) - 1 - place)
                parameter = f"{module}.{leaf}"
                self._factors(path, parameter, parameter, 1.0)

    def _factors(self, path: str, parameter: str, name: str, times: float) -> None:
        """The factors at `path`; `name` is what rank and alpha are looked up by."""
        embedded = self._has(f"{path}.lora_embedding_A")
        first, second = (
            ("lora_embedding_A", "lora_embedding_B")
            if embedded
            else ("lora_A.weight", "lora_B.weight")
        )
        wanted = [f"{path}.{first}", f"{path}.{second}"]
        extra = list(self._extras(path))
        lacking = [key for key in (*wanted, *extra) if not self._has(key)]
        if lacking:
            self.missing += lacking
            return
        a, b = (self.file.shape(PREFIX + key) for key in wanted)
        rank, scale = self.scaling.at(name)
        experts = self._experts(parameter, a[0], rank)
        if a[0] != rank * experts:
            self.faults.append((PREFIX + wanted[0], f"rank {a[0]}, the config says {rank}"))
        biased = f"{path}.lora_B.bias"
        sources = tuple(PREFIX + key for key in (*wanted, *extra) if key != biased)
        shape = () if self.config.get("use_bdlora") or experts > 1 else _shape(a, b, embedded)
        self.applied.append(Applied(parameter, self.tuner, sources, shape, rank, times * scale))
        if biased in extra:
            self._check_bias(name)
            owner = parameter.removesuffix("weight") + "bias"
            self.applied.append(Applied(owner, "shift", (PREFIX + biased,), scale=times * scale))
        self.used.update(PREFIX + key for key in (*wanted, *extra))
        self.used.update(self._of_training(path))

    def _check_bias(self, module: str) -> None:
        """A layer without a bias stops PEFT where `lora_bias` is set."""
        known = self.model.known
        if known.complete and f"{module}.bias" not in known.parameters:
            why = "lora_bias is for all modules of an adapter, and this layer has no bias"
            hint = "merge them one after the other: merge BASE A OUT --add B"
            self.refused.append(Refusal(why, module, hint))

    def _extras(self, path: str) -> Iterator[str]:
        """What the config's switches make PEFT look for beside two factors."""
        if self.config.get("use_dora"):
            yield f"{path}.lora_magnitude_vector"
        if self.config.get("lora_bias"):
            yield f"{path}.lora_B.bias"
        if self.config.get("kasa_config"):
            yield f"{path}.lora_diag"

    def _of_training(self, path: str) -> Iterator[str]:
        """The keys at `path` of what served the training alone."""
        kinds = {"velora_config": "lora_velora_", "monteclora_config": "lora_monteclora_"}
        starts = [start for switch, start in kinds.items() if self.config.get(switch)]
        for start in starts:
            beginning = f"{PREFIX}{path}.{start}"
            yield from (key for key in self.file.tensors if key.startswith(beginning))

    def _experts(self, parameter: str, rows: int, rank: int) -> int:
        """How many matrices a parameter that is targeted by name stacks, where that is known."""
        if parameter.rpartition(".")[2] == "weight" or rows % rank:
            return 1
        return rows // rank

    def whole(self) -> None:
        """Every other key: a parameter of the wrapped model, or nothing of it."""
        rows = self._rows()
        for name in self.file.tensors:
            if name in self.used or not name.startswith(PREFIX):
                continue
            path = name.removeprefix(PREFIX)
            if path.endswith(f".{ROWS}"):
                self._take_rows(name, path.removesuffix(f".{ROWS}"), rows)
                continue
            parameter = path.replace(f".{ROWS_BASE}.", ".").replace(f".{BASE_LAYER}.", ".")
            if self._lies_at(parameter, rows) == path and self._is_there(parameter):
                self.used.add(name)
                self.applied.append(Applied(parameter, "", (name,)))
        self._check_saved()

    def _lies_at(self, parameter: str, rows: Mapping[str, int]) -> str:
        """Where the wrapped model has the parameter."""
        module, _, leaf = parameter.rpartition(".")
        if self.model.is_saved(module):
            return parameter
        if module in rows:
            return f"{module}.{ROWS_BASE}.{leaf}"
        path = plain = ""
        for part in module.split("."):
            plain = f"{plain}.{part}" if plain else part
            path = f"{path}.{part}" if path else part
            depth = self.model.depth(plain) + (plain in self.inner)
            path += f".{BASE_LAYER}" * depth
        return f"{path}.{leaf}"

    def _is_there(self, parameter: str) -> bool:
        """Whether the model has the parameter, as far as that is known."""
        known = self.model.known
        return not known.complete or parameter.rpartition(".")[0] in known.modules

    def _rows(self) -> dict[str, int]:
        """The modules of which rows are trained, and how many."""
        given = self.config.get("trainable_token_indices")
        named = given if isinstance(given, Mapping) else {self._embedding(): given} if given else {}
        return {
            module: len(rows)
            for name, rows in named.items()
            for module in self.model.known.modules
            if module.endswith(name)
        }

    def _embedding(self) -> str:
        """A list of rows is of the model's input embedding: the only module the file has rows of.

        Source: PEFT's `set_additional_trainable_modules` and `_get_input_embeddings_name`.
        """
        ending = f".{ROWS}"
        found = [name for name in self.file.tensors if name.endswith(ending)]
        if len(found) != 1:
            return EMBEDDING
        return found[0].removeprefix(PREFIX).removesuffix(ending)

    def _take_rows(self, name: str, module: str, rows: Mapping[str, int]) -> None:
        if rows.get(module) == self.file.shape(name)[0]:
            self.used.add(name)
            self.applied.append(Applied(f"{module}.weight", "rows", (name,)))

    def _check_saved(self) -> None:
        """A saved module whose parameters are not all in the file stops PEFT."""
        known = self.model.known.parameters
        for parameter in known:
            module = parameter.rpartition(".")[0]
            if self.model.is_saved(module) and not self._has(parameter):
                self.missing.append(parameter)

    def _has(self, key: str) -> bool:
        return PREFIX + key in self.file.tensors


def _shape(a: tuple[int, ...], b: tuple[int, ...], embedded: bool) -> tuple[int, ...]:
    return (b[0], a[1]) if embedded else (b[0], prod(a[1:]))


def _of_another_kind(file: File, model: _Model, peft_type: str) -> Loaded:
    """Other kinds go from PEFT to PEFT with the keys they had; what they are put on must be there.

    Their formulas are not modelled here.
    """
    endings = [
        ending
        for tuner in tuners().values()
        if tuner.DECLARATION.serves(peft_type)
        for ending in tuner.DECLARATION.keys
        if "{}" not in ending
    ]
    faults = []
    for name in file.tensors:
        path = name.removeprefix(PREFIX)
        ending = next((each for each in endings if path.endswith(f".{each}")), None)
        module = path.removesuffix(f".{ending}").replace(f".{BASE_LAYER}", "")
        if ending is not None and not model.selection.takes(module):
            faults.append((name, "its module is not selected"))
    return Loaded(None, faults=tuple(faults))
