"""What the tensors of one LyCORIS module do, as deltas of the tuners known here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.layouts.kohya import deltas_at
from adaptool.layouts.kohya_factors import check_factor, trained
from adaptool.layouts.kohya_keys import alpha_of, number_of
from adaptool.layouts.pipeline_families import Place
from adaptool.layouts.pipeline_names import Size
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.derived import F32, constant, joined, reshaped, taken, weighted_sum
from adaptool.model.fusing import taken_rows
from adaptool.model.reading import Reading
from adaptool.model.view import Span
from adaptool.names.diffusion import Rows
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

Roles = Mapping[str, TensorRef]
LORA = frozenset({"down", "up", "mid", "dora_scale"})
LOHA = frozenset({"w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"})
LOKR = frozenset(f"lokr.{role}" for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"))
GLORA = frozenset({"a1", "a2", "b1", "b2"})
IA3 = frozenset({"gain", "on_input"})
# Differences of whole parameters: they stand beside any algorithm.
_WHOLE = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}


@dataclass(frozen=True, slots=True)
class _Module:
    """One stored module: its name in the file, tensors, alpha's reader, and where it leads."""

    flat: str
    roles: Roles
    reading: Reading
    place: Place

    def rows(self, out: int, inner: int | None) -> Iterator[tuple[str, Rows | None]]:
        """The real modules and their rows of the stored one's outputs; None for all of them."""
        rows = self.place.rows(out, inner)
        for module, part in zip(self.place.modules, rows, strict=True):
            yield module, None if part == ((0, out),) else part


def size_of(roles: Roles) -> Size | None:
    """(out, in * kernel) as far as the tensors tell it; None where they do not."""
    shapes = {role: ref.shape for role, ref in roles.items()}
    for role in ("diff", "w_norm", "diff_b", "b_norm"):
        if shapes.get(role):
            return shapes[role][0], prod(shapes[role][1:]) if len(shapes[role]) > 1 else None
    if {"up", "down"} <= shapes.keys() and len(shapes["down"]) > 1:
        return shapes["up"][0], shapes["down"][1]
    if {"w1_a", "w1_b"} <= shapes.keys():
        core = shapes.get("t1")
        return shapes["w1_a"][1 if core else 0], shapes["w1_b"][-1] * prod((core or ())[2:])
    if shapes.keys() & LOKR:
        (first, second), (third, fourth) = (_kron_size(shapes, place) for place in (1, 2))
        return (first * third, second * fourth) if first * third else None
    if {"b1", "b2"} <= shapes.keys() and len(shapes["b2"]) > 1:
        return shapes["b1"][0], prod(shapes["b2"][1:])
    return None


def _kron_size(shapes: Mapping[str, tuple[int, ...]], place: int) -> tuple[int, int]:
    """Rows and columns of one of the two matrices; 0 where a tensor is missing."""
    whole = shapes.get(f"lokr.w{place}")
    if whole:
        return whole[0], prod(whole[1:])
    a, b = shapes.get(f"lokr.w{place}_a"), shapes.get(f"lokr.w{place}_b")
    if not a or not b:
        return 0, 0
    core = shapes.get(f"lokr.t{place}")
    return a[-1] if core else a[0], b[-1] * prod((core or ())[2:])


def deltas_of(flat: str, roles: Roles, place: Place, reading: Reading) -> Iterator[Delta]:
    """The deltas of all that the module holds; InputError where its tensors do not go together."""
    for role, ref in roles.items():
        if role not in {"alpha", "on_input"}:
            check_factor(ref)
    module = _Module(flat, roles, reading, place)
    rest = roles.keys() - _WHOLE.keys() - {"alpha"}
    for known, read in _ALGORITHMS:
        if rest and rest <= known:
            yield from read(module)
            break
    else:
        if rest:
            _refuse_together(module, rest)
    for role, leaf in _WHOLE.items():
        if role in roles:
            yield from _difference(module, roles[role], leaf)


def _refuse_together(module: _Module, roles: set[str]) -> None:
    if "dora_scale" in roles:
        message = "DoRA over this algorithm's delta is not supported"
        raise MismatchError(message, code=Code.TUNER_UNSUPPORTED, tensor=module.flat)
    message = f"no algorithm of LyCORIS has the tensors {', '.join(sorted(roles))} together"
    raise InputError(message, code=Code.KEYS_UNRECOGNISED, tensor=module.flat)


def _locon(module: _Module) -> Iterator[Delta]:
    yield from deltas_at(trained(module.flat, module.roles, module.reading), module.place)


def _loha(module: _Module) -> Iterator[Delta]:
    roles = {role: ref for role, ref in module.roles.items() if role in LOHA}
    _require(module, LOHA - {"t1", "t2"})
    rank = roles["w1_b"].shape[0]
    config = {"r": rank, "alpha": alpha_of(module.roles, rank, module.reading)}
    tuner = tuners()["loha"]
    whole = tuner.terms(config, module.flat, {role: ref.shape for role, ref in roles.items()})
    for path, rows in module.rows(whole.out, whole.inner):
        part = dict(roles)
        for a, core in (("w1_a", "t1"), ("w2_a", "t2")):
            part[a] = _outputs(roles[a], rows, axis=1 if core in roles else 0)
        terms = tuner.terms(config, path, {role: ref.shape for role, ref in part.items()})
        yield Delta(path, f"{path}.weight", "loha", part, terms)


def _outputs(ref: TensorRef, rows: Rows | None, axis: int) -> TensorRef:
    """The part of a factor that makes these outputs."""
    if rows is None:
        return ref
    return joined([taken(ref, Span(start, stop - start), axis) for start, stop in rows], axis)


def _lokr(module: _Module) -> Iterator[Delta]:
    roles = {role.removeprefix("lokr."): ref for role, ref in module.roles.items() if role in LOKR}
    ranks = [roles[role].shape[0] for role in ("w1_b", "w2_b") if role in roles]
    # Two whole matrices have no rank, and the alpha beside them no meaning.
    rank = ranks[0] if ranks else 1
    alpha = alpha_of(module.roles, rank, module.reading) if ranks else 1.0
    config = {"r": rank, "alpha": alpha}
    whole = _lokr_terms(config, module.flat, roles)
    left = "w1" if "w1" in roles else "w1_a"
    height = whole.out // roles[left].shape[0]
    for path, rows in module.rows(whole.out, whole.inner):
        part = {**roles, left: _outputs(roles[left], _blocks(module, rows, height), axis=0)}
        yield Delta(path, f"{path}.weight", "lokr", part, _lokr_terms(config, path, part))


def _lokr_terms(config: Mapping[str, object], path: str, roles: Roles) -> Terms:
    shapes = {role: ref.shape for role, ref in roles.items()}
    # LyCORIS has the axes of every convolution in order; PEFT's Conv1d has not.
    return replace(tuners()["lokr"].terms(config, path, shapes), conventions={})


def _blocks(module: _Module, rows: Rows | None, height: int) -> Rows | None:
    """The rows of w1 whose blocks of `height` outputs these are."""
    if rows is None:
        return None
    if any(edge % height for part in rows for edge in part):
        message = f"its blocks of {height} outputs reach over the modules that it fuses"
        hint = "--base with a checkpoint that has them fused, or convert --as lora with any"
        raise MismatchError(message, code=Code.UNSUPPORTED, tensor=module.flat, hint=hint)
    return tuple((start // height, stop // height) for start, stop in rows)


def _glora(module: _Module) -> Iterator[Delta]:
    _require(module, GLORA)
    roles = {role: ref for role, ref in module.roles.items() if role in GLORA}
    rank = roles["b2"].shape[0]
    config = {"r": rank, "alpha": alpha_of(module.roles, rank, module.reading)}
    out, inner = roles["b1"].shape[0], prod(roles["b2"].shape[1:])
    for path, rows in module.rows(out, inner):
        part = {**roles, "b1": _outputs(roles["b1"], rows, axis=0)}
        shapes = {role: ref.shape for role, ref in part.items()}
        terms = tuners()["glora_product"].terms(config, path, shapes)
        yield Delta(path, f"{path}.weight", "glora_product", part, terms)


def _ia3(module: _Module) -> Iterator[Delta]:
    """The file holds l - 1, and PEFT's l scales the layer's bias as well, LyCORIS' not."""
    _require(module, IA3)
    gain = module.roles["gain"]
    on_input = bool(number_of(module.roles["on_input"]))
    count, axes = gain.elements, len(gain.shape)
    if axes == 1:
        gain = reshaped(gain, (1, count) if on_input else (count, 1))
    ones = constant(gain.name, [1.0] * count, gain.shape)
    whole = weighted_sum([(1.0, ones), (1.0, gain)])
    parts: list[tuple[str, Rows | None]] = (
        [(path, None) for path in module.place.modules]
        if on_input
        else list(module.rows(count, None))
    )
    for path, rows in parts:
        part = _outputs(whole, rows, axis=0 if axes == 1 else 1)
        config = {"feedforward_modules": [path] if on_input else []}
        terms = tuners()["ia3"].terms(config, path, {"l": part.shape})
        yield Delta(path, f"{path}.weight", "ia3", {"l": part}, terms, dtype=F32)


def _difference(module: _Module, ref: TensorRef, leaf: str) -> Iterator[Delta]:
    inner = prod(ref.shape[1:])
    form = (Form.VECTOR, Form.LINEAR, Form.CONVOLUTION)[min(len(ref.shape), 3) - 1]
    for path, rows in module.rows(ref.shape[0], inner if len(ref.shape) > 1 else None):
        part = ref if rows is None else taken_rows(ref, rows)
        terms = Terms(form, part.shape[0], inner, 1.0, kernel=part.shape[2:])
        yield Delta(path, f"{path}.{leaf}", "shift", {"difference": part}, terms)


def _require(module: _Module, wanted: frozenset[str]) -> None:
    missing = sorted(wanted - module.roles.keys())
    if missing:
        message = f"{', '.join(missing)} is missing"
        hint = "the file is incomplete: save or download the adapter again"
        raise InputError(message, code=Code.FACTOR_MISSING, tensor=module.flat, hint=hint)


_ALGORITHMS: tuple[tuple[frozenset[str], Callable[[_Module], Iterator[Delta]]], ...] = (
    (LORA, _locon),
    (LOHA, _loha),
    (LOKR, _lokr),
    (GLORA, _glora),
    (IA3, _ia3),
)
