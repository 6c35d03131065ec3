"""How MLX-LM reads an adapter: layers are wrapped by the config, then the file must fit them.

The config's `keys` are paths inside a layer, or whole paths; every layer's are wrapped at one rank
and scaled by one `scale`. A tensor of the file that no wrapped layer has, or has in another shape,
stops it; a wrapped layer that the file lacks begins at zero and stays there.
Source: mlx-lm 0.32.2, `load_adapters` and `linear_to_lora_layers` of mlx_lm/tuner/utils.py.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptool.names.families import model_types
from adaptool.names.mlx_names import mlx_paths, mlx_type
from adaptool.readers.values import Applied, File, Loaded, Refusal

PROGRAM = "MLX-LM 0.32.2"
LEAVES = ("lora_a", "lora_b", "m")
NEEDED = ("rank", "scale", "dropout")
# A module's path inside its layer; `model.layers` of all families there.
_IN_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.\d+\.(.+)")


def read(file: File) -> Loaded:
    """What MLX-LM does with the file, whose config lies beside it or in its metadata."""
    config = file.documents.get("adapter_config.json")
    if config is None:
        config = json.loads(file.metadata["adapter_config"])
    if config.get("fine_tune_type") == "full":
        return Loaded(tuple(Applied(name, "", (name,)) for name in file.tensors))
    problem = _unusable(config, file)
    if problem is not None:
        return Loaded((), refused=(Refusal(problem),))
    return _Reading.of(config, file).loaded()


def _unusable(config: Mapping[str, Any], file: File) -> str | None:
    """Why nothing is read at all."""
    types = model_types(file.base.config) if file.base is not None else ()
    if types and mlx_type(types) is None:
        return f"it has no model of type {types[0]}"
    parameters = config.get("lora_parameters") or {}
    missing = [name for name in NEEDED if name not in parameters]
    missing += [] if "num_layers" in config else ["num_layers"]
    return f"the config lacks {', '.join(missing)}" if missing else None


@dataclass(frozen=True, slots=True)
class _Reading:
    """The wrapped layers, and the parameters of the adapter that each of its modules stands for."""

    file: File
    rank: int
    scale: float
    keys: frozenset[str]
    parameters: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, config: Mapping[str, Any], file: File) -> _Reading:
        types = model_types(file.base.config) if file.base is not None else ()
        found: dict[str, list[str]] = defaultdict(list)
        for parameter in sorted(file.parameters):
            for path in mlx_paths(mlx_type(types), parameter):
                found[path].append(parameter)
        parameters = config["lora_parameters"]
        keys = frozenset(parameters.get("keys") or ())
        return cls(file, parameters["rank"], parameters["scale"], keys, found)

    def loaded(self) -> Loaded:
        """Everything that is applied, and why it would stop."""
        modules: dict[str, dict[str, str]] = defaultdict(dict)
        unknown = []
        for name in self.file.tensors:
            path, _, leaf = name.rpartition(".")
            if leaf in LEAVES and self._is_wrapped(path):
                modules[path][leaf] = name
            else:
                unknown.append(name)
        applied = [each for path in modules for each in self._applied(path, modules[path])]
        refused = [Refusal("it is no parameter of an adapter in its model", n) for n in unknown]
        refused += [each for path in modules for each in self._misfits(modules[path])]
        return Loaded(tuple(applied), refused=tuple(refused))

    def _is_wrapped(self, path: str) -> bool:
        found = _IN_LAYER.fullmatch(path)
        inside = found[1] if found is not None else path
        return path in self.parameters and bool({path, inside} & self.keys)

    def _applied(self, path: str, names: Mapping[str, str]) -> Iterator[Applied]:
        if not {"lora_a", "lora_b"} <= names.keys():
            return
        a, b = (self.file.shape(names[leaf]) for leaf in ("lora_a", "lora_b"))
        shape = (b[-1], a[0]) if len(b) == 2 else (b[1], a[2])
        sources = tuple(names[leaf] for leaf in LEAVES if leaf in names)
        tuner = "dora" if "m" in names else "lora"
        for parameter in self.parameters[path]:
            whole = parameter.endswith(".weight")
            yield Applied(parameter, tuner, sources, shape if whole else (), self.rank, self.scale)

    def _misfits(self, names: Mapping[str, str]) -> Iterator[Refusal]:
        """Factors of another rank than the config's."""
        for leaf, axis in (("lora_a", 1), ("lora_b", 0)):
            if leaf not in names:
                continue
            shape = self.file.shape(names[leaf])
            place = axis if len(shape) == 2 else 1 if leaf == "lora_a" else 2
            if shape[place] != self.rank:
                why = f"{leaf} {list(shape)} has not the config's rank {self.rank}"
                yield Refusal(why, names[leaf])
