"""Adapters of diffusion pipelines: files made from facts, and what they amount to.

A delta is compared as the whole matrix it adds, in float64, whatever its factors look like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from adaptool import layouts
from adaptool.layouts import writable
from adaptool.model.adapter import Adapter
from adaptool.model.derived import array
from adaptool.model.encoding import Destination, Encoded
from adaptool.model.numbers import as_float64
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.ops.adapter_plan import adapter_plan
from adaptool.store.adapter_files import open_adapter
from adaptool.store.tensors import TensorRef
from exact_numbers import exact_normal

HEADERS = Path(__file__).parent / "layouts" / "headers"
LARGEST = 1 << 20
Tensors = dict[str, np.ndarray[Any, Any]]


@dataclass(slots=True)
class Effect:
    """What an adapter does: matrices added, bias differences, magnitudes, whole tensors."""

    added: Tensors = field(default_factory=dict)
    shifted: Tensors = field(default_factory=dict)
    magnitudes: Tensors = field(default_factory=dict)
    replaced: Tensors = field(default_factory=dict)

    def assert_same(self, other: Effect, tolerance: float = 0.0) -> None:
        """Every tensor of one is in the other, and equal to `tolerance` times its largest value."""
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            assert sorted(mine) == sorted(theirs)
            for name, value in mine.items():
                assert value.shape == theirs[name].shape, name
                limit = tolerance * np.abs(value).max()
                assert np.abs(value - theirs[name]).max() <= limit, name

    @property
    def parts(self) -> tuple[Tensors, ...]:
        """The four kinds."""
        return self.added, self.shifted, self.magnitudes, self.replaced


def values(ref: TensorRef) -> np.ndarray[Any, Any]:
    """A tensor's numbers in float64."""
    return as_float64(array(ref), ref.dtype)


def effect_of(adapter: Adapter) -> Effect:
    """Every delta as the matrix it is."""
    found = Effect()
    for delta in adapter.deltas:
        scaling = delta.terms.scaling
        if delta.tuner == "shift":
            found.shifted[delta.parameter] = scaling * values(delta.roles["difference"])
            continue
        a, b = values(delta.roles["A"]), values(delta.roles["B"])
        found.added[delta.parameter] = scaling * product(b, a)
        if "magnitude" in delta.roles:
            found.magnitudes[delta.parameter] = values(delta.roles["magnitude"]).reshape(-1)
    for item in adapter.replaced:
        found.replaced[item.parameter] = values(item.value)
    return found


def product(b: np.ndarray[Any, Any], a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """B A as a matrix; of a large one what it makes of two random vectors."""
    left, right = b.reshape(len(b), -1), a.reshape(len(a), -1)
    if left.shape[0] * right.shape[1] > LARGEST:
        right = right @ exact_normal(np.random.default_rng(0), right.shape[1], 2)
    return left @ right


def random_file(path: Path, header: str) -> Path:
    """The names of a real file with random numbers in it, every size of 64 and more a 64th."""
    facts = json.loads((HEADERS / f"{header}.json").read_text())["tensors"]
    rng = np.random.default_rng(7)
    shapes = {name: [size // 64 if size >= 64 else size for size in s] for name, s in facts.items()}
    tensors = {
        name: exact_normal(rng, *shape).astype(np.float16) if shape else np.float32(3)
        for name, shape in shapes.items()
    }
    save_file({name: np.asarray(value) for name, value in tensors.items()}, path)
    return path


def factors(
    modules: Mapping[str, tuple[int, ...]], rank: int = 2, ends: tuple[str, str] = ("A", "B")
) -> Tensors:
    """`<module>.lora_A.weight` and `lora_B`, random; sizes are (out, in) or (out, in, kh, kw)."""
    rng = np.random.default_rng(3)
    found = {}
    for name, (out, inner, *kernel) in modules.items():
        ones = [1 for _ in kernel]
        found[f"{name}.lora_{ends[0]}.weight"] = exact_normal(rng, rank, inner, *kernel)
        found[f"{name}.lora_{ends[1]}.weight"] = exact_normal(rng, out, rank, *ones)
    return {name: value.astype(np.float32) for name, value in found.items()}


def saved(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """The tensors as a safetensors file."""
    save_file(tensors, path, metadata=dict(metadata or {}))
    return path


def read(path: Path, reading: Reading = AS_IT_STANDS) -> Adapter:
    """The adapter in a file or directory; the file stays open as long as it is used."""
    return layouts.decode(open_adapter(path), reading)


def converted(adapter: Adapter, layout: str, folder: Path, *, bake: bool = False) -> Path:
    """The adapter written in `layout` into `folder`; it loses nothing there."""
    target = writable()[layout]
    assert target.losses(adapter) == ()
    encoded = target.encode(adapter, Destination(bake=bake))
    folder.mkdir(parents=True, exist_ok=True)
    write_plainly(encoded, folder)
    return folder


def write_plainly(encoded: Encoded, folder: Path) -> None:
    """The bytes an encoded adapter stands for, in its dtypes, without the engine."""
    plan = adapter_plan(encoded, inputs=(), options={}, decisions={})
    content = bytearray(encoded.size)
    content[: len(encoded.header)] = encoded.header
    for row in plan.rows:
        raw = rounded(row.source, row.dtype.name)
        content[row.offset : row.offset + row.length] = raw
    (folder / encoded.file).write_bytes(content)
    for document in encoded.documents:
        assert document.content is not None
        (folder / document.name).write_bytes(document.content)


def rounded(ref: TensorRef, dtype: str) -> bytes:
    """The tensor's bytes in `dtype`; only what is computed is ever rounded."""
    if ref.dtype.name == dtype:
        return array(ref).tobytes()
    return values(ref).astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def tensors_in(folder: Path) -> Tensors:
    """The tensors of the one safetensors file in a directory."""
    (path,) = folder.glob("*.safetensors")
    return load_file(path)
