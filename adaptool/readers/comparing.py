"""What a program would apply, beside what was meant: the same parameters, numbers and scales."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from adaptool.errors import AdaptoolError, InternalError, MismatchError, gathered
from adaptool.findings import Code
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.model.derived import array
from adaptool.model.encoding import Encoded, Written
from adaptool.model.gains import gains
from adaptool.readers.values import Applied, Loaded, Refusal
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

_PAIRS = ({"A", "B"}, {"embedding_A", "embedding_B"})
REPLACES = frozenset({"", "rows"})
# Scales pass through float32 (alphas) and through decimal text.
TOLERANCE = 1e-5


def compare(adapter: Adapter, loaded: Loaded, encoded: Encoded, program: str) -> None:
    """Raise unless `loaded` is the adapter; errors as in `readers.check`."""
    if loaded.refused:
        raise gathered([_refused(adapter, each, program) for each in loaded.refused])
    tensors = {tensor.name: tensor for tensor in encoded.tensors}
    problems = list(_problems(adapter, loaded, tensors))
    if problems:
        raise gathered([_internal(encoded, program, *problem) for problem in problems])


def _refused(adapter: Adapter, refusal: Refusal, program: str) -> AdaptoolError:
    return MismatchError(
        f"{program} cannot load this: {refusal.why}",
        code=Code.LAYOUT_CANNOT_HOLD,
        file=adapter.name,
        tensor=refusal.tensor,
        hint=refusal.hint,
    )


def _internal(encoded: Encoded, program: str, name: str, what: str) -> AdaptoolError:
    message = f"not written, since {program} would read it otherwise than it is meant: {what}"
    return InternalError(message, code=Code.INTERNAL, file=encoded.file, tensor=name)


Problem = tuple[str, str]
"""A tensor or parameter, and what is wrong with it."""


def _problems(
    adapter: Adapter, loaded: Loaded, tensors: Mapping[str, Written]
) -> Iterator[Problem]:
    for name in loaded.unread:
        yield name, "nothing reads this tensor"
    for name in loaded.missing:
        yield name, "it looks for this tensor in vain"
    yield from loaded.faults
    if loaded.applied is None:
        return
    found = loaded.by_parameter()
    meant = {delta.parameter for delta in adapter.deltas}
    meant |= {item.parameter for item in adapter.replaced}
    for parameter in found.keys() - meant:
        if not all(_is_nothing(each, tensors) for each in found[parameter]):
            yield parameter, "it changes this parameter, which the adapter leaves alone"
    for delta in adapter.deltas:
        yield from _of_delta(delta, found.get(delta.parameter, []), tensors)
    for item in adapter.replaced:
        yield from _of_replaced(item, found.get(item.parameter, []), tensors)


def _is_nothing(applied: Applied, tensors: Mapping[str, Written]) -> bool:
    """Whether it adds a difference that is 0 everywhere, made where a program asks for one."""
    refs = [tensors[name].ref for name in applied.sources]
    return applied.tuner == "shift" and all(
        not getattr(ref.source, "parents", True) and not array(ref).any() for ref in refs
    )


def _of_delta(
    delta: Delta, applied: Sequence[Applied], tensors: Mapping[str, Written]
) -> Iterator[Problem]:
    """What is wrong with the reading of one delta."""
    mine = [each for each in applied if each.tuner not in REPLACES and _is_of(each, delta, tensors)]
    if not mine:
        yield delta.parameter, "it applies none of the delta's factors to this parameter"
    for each in mine:
        if each.tuner not in _formulas(delta):
            yield delta.parameter, f"it applies {each.tuner}, not {delta.tuner}"
        meant = (delta.terms.out, delta.terms.inner)
        if each.shape and delta.terms.sized and tuple(each.shape) != meant:
            yield delta.parameter, f"a delta of {list(each.shape)}, not of {list(meant)}"
        for scale in _scales(each, delta, tensors):
            if not math.isclose(scale, delta.terms.scaling, rel_tol=TOLERANCE):
                yield delta.parameter, f"a scale of {scale:g}, not of {delta.terms.scaling:g}"


def _formulas(delta: Delta) -> frozenset[str]:
    """Our names of what is done with the factors: some of PEFT's LoRAs differ in training alone."""
    known = tuners().get(delta.tuner)
    roles = delta.roles.keys()
    plain = known is not None and known.DECLARATION.peft_type == "LORA" and roles in _PAIRS
    return frozenset({delta.tuner, *(["lora"] if plain and not delta.terms.conventions else [])})


def _of_replaced(
    item: Replaced, applied: Sequence[Applied], tensors: Mapping[str, Written]
) -> Iterator[Problem]:
    """What is wrong with the reading of one tensor that is brought whole."""
    wanted = "rows" if item.rows is not None else ""
    if not any(each.tuner == wanted and _reaches(each, [item.value], tensors) for each in applied):
        yield item.parameter, "the tensor that should take its place does not"


def _is_of(applied: Applied, delta: Delta, tensors: Mapping[str, Written]) -> bool:
    return _reaches(applied, list(delta.roles.values()), tensors)


def _reaches(applied: Applied, refs: Sequence[TensorRef], tensors: Mapping[str, Written]) -> bool:
    """Whether one of the tensors that are used is made of one of `refs`."""
    used = [tensors[name].ref for name in applied.sources]
    return any(gains(ref, original) for ref in used for original in refs)


def _scales(applied: Applied, delta: Delta, tensors: Mapping[str, Written]) -> set[float]:
    """What multiplies the delta's own factors, the program's scale and the file's numbers together.

    A factor's own share is what the numbers in the file are of the role's: 1 where they are moved.
    """
    used = [tensors[name].ref for name in applied.sources]
    scales = {applied.scale}
    for role in delta.roles.values():
        shares = {share for ref in used for share in gains(ref, role)}
        scales = {scale * share for scale in scales for share in shares or {1.0}}
    return scales
