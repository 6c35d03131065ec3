"""What a program is given that loads an adapter, and what it makes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptool.model.derived import array
from adaptool.model.encoding import Encoded, Written
from adaptool.model.numbers import as_float64
from adaptool.model.reading import BaseNames

LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class File:
    """A written adapter as its reader meets it, before a byte of it is on disk.

    `tensors` by name, `header` as it is written, `documents` parsed, by file name. `base` is what
    is known of the model it is loaded into; `modules` are the paths of the modules that the
    adapter is about, for readers that need a model's modules where `base` is None, and
    `parameters` are those modules' that it changes.
    """

    name: str
    tensors: Mapping[str, Written]
    header: bytes
    documents: Mapping[str, Any]
    base: BaseNames | None = None
    parameters: frozenset[str] = frozenset()

    @property
    def modules(self) -> frozenset[str]:
        """The modules of `parameters`."""
        return frozenset(name.rpartition(".")[0] for name in self.parameters)

    @classmethod
    def of(cls, encoded: Encoded, base: BaseNames | None, parameters: frozenset[str]) -> File:
        """The file that `encoded` will be, with the documents that lie beside it."""
        return cls(
            encoded.file,
            {tensor.name: tensor for tensor in encoded.tensors},
            encoded.header,
            {
                document.name: json.loads(document.content)
                for document in encoded.documents
                if document.name.endswith(".json") and document.content is not None
            },
            base,
            parameters,
        )

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of a safetensors file."""
        found: Mapping[str, str] = json.loads(self.header[LENGTH_BYTES:]).get("__metadata__", {})
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the file."""
        return self.tensors[name].ref.shape

    def number(self, name: str) -> float:
        """The value of a tensor that holds one number, such as `alpha`; it is read."""
        ref = self.tensors[name].ref
        return float(as_float64(array(ref), ref.dtype).reshape(-1)[0])


@dataclass(frozen=True, slots=True)
class Applied:
    """What a program does to one parameter with tensors of the file.

    `parameter` is in the adapter's names (those of `Delta.parameter`): a reader whose program has
    names of its own translates them by that program's table. `tuner` is ours for the formula that
    is applied ("lora", "dora", "shift", ...), "" where the tensor takes the parameter's place, and
    "rows" where its rows take the place of some rows. `shape` is (out, in * kernel) of one matrix,
    () where the reader does not tell. `scale` is what multiplies the product of the tensors as
    they stand in the file.
    """

    parameter: str
    tuner: str
    sources: tuple[str, ...]
    shape: tuple[int, ...] = ()
    rank: int | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a program does not load the file, where no other way of writing it would help."""

    why: str
    tensor: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What becomes of a file in the program that reads it.

    `unread` are tensors that it leaves out, `missing` names that it looks for in vain (it goes on
    with other numbers), `faults` what else it stops at, or does otherwise, that another way of
    writing would mend: a name of the file or the model, and what. `refused` is why its format
    cannot hold the adapter. `applied` is None where the formula is not modelled: names alone are
    compared then.
    """

    applied: tuple[Applied, ...] | None
    unread: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()
    refused: tuple[Refusal, ...] = ()

    def by_parameter(self) -> Mapping[str, list[Applied]]:
        """What is done to each parameter."""
        found: dict[str, list[Applied]] = {}
        for each in self.applied or ():
            found.setdefault(each.parameter, []).append(each)
        return found
