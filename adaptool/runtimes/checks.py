"""Checks that the tables of several runtimes share: each looks for one thing in an adapter.

A check sees what was decoded, and where nothing could be, the config's own words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence

from adaptool.model.adapter import Delta, Form
from adaptool.runtimes.rules import MERGE, Candidate, Check, Problem
from adaptool.tuners import tuners

# Below it, two scalings are the same number written differently.
_SAME_SCALE = 1e-6


def switched(field: str, message: str) -> Check:
    """Finds a config field that is set."""

    def check(candidate: Candidate) -> Iterator[Problem]:
        if candidate.config.get(field):
            yield Problem(message, field=field)

    return check


def lacking(*fields: str) -> Check:
    """Finds config fields that are not there."""

    def check(candidate: Candidate) -> Iterator[Problem]:
        for field in fields:
            if field not in candidate.config:
                yield Problem("needed, and not in the config", field=field)

    return check


def config_inside(candidate: Candidate) -> Iterator[Problem]:
    """Finds a config that lies in the metadata of the file, or nowhere."""
    if candidate.files.config_path is None:
        yield Problem("there is no adapter_config.json beside the weights")


def named_otherwise(name: str) -> Check:
    """Finds a weights file that is not called `name`."""

    def check(candidate: Candidate) -> Iterator[Problem]:
        found = candidate.files.path.name
        if found != name:
            yield Problem(f"it looks for {name}, the file is called {found}")

    return check


def other_tuners(candidate: Candidate) -> Iterator[Problem]:
    """Finds updates that are no LoRA."""
    others = [delta for delta in candidate.deltas if _is_other(delta)]
    kind = candidate.config.get("peft_type")
    if others:
        titles = sorted({_title(delta) for delta in others})
        mend = None if all(map(_is_low_rank, others)) else MERGE
        message = f"{', '.join(titles)} instead of LoRA"
        yield Problem(message, tensor=others[0].module, field="peft_type", mend=mend)
    elif candidate.adapter is None and isinstance(kind, str) and kind.upper() != "LORA":
        mend = "see first what is said of the adapter itself"
        yield Problem(f"{kind} instead of LORA", field="peft_type", mend=mend)


def _is_other(delta: Delta) -> bool:
    known = tuners().get(delta.tuner)
    return known is None or known.DECLARATION.peft_type not in ("LORA", "")


def _is_low_rank(delta: Delta) -> bool:
    """Whether `convert` can make a LoRA of it without the base."""
    known = tuners().get(delta.tuner)
    return known is not None and known.DECLARATION.low_rank


def _title(delta: Delta) -> str:
    known = tuners().get(delta.tuner)
    return known.DECLARATION.title if known is not None else delta.tuner


def magnitudes(candidate: Candidate) -> Iterator[Problem]:
    """Finds DoRA."""
    names = [delta.module for delta in candidate.deltas if "magnitude" in delta.roles]
    if names:
        yield Problem(f"{len(names)} modules are DoRA", tensor=names[0], field="use_dora")
    elif candidate.adapter is None and candidate.config.get("use_dora"):
        yield Problem("the modules are DoRA", field="use_dora")


def factor_biases(candidate: Candidate) -> Iterator[Problem]:
    """Finds lora_bias: a trained bias beside the factors."""
    names = [delta.parameter for delta in candidate.deltas if delta.parameter.endswith(".bias")]
    if names:
        yield Problem(f"{len(names)} biases of lora_B", tensor=names[0], field="lora_bias")
    elif candidate.adapter is None and candidate.config.get("lora_bias"):
        yield Problem("biases of lora_B", field="lora_bias")


def trained_biases(candidate: Candidate) -> Iterator[Problem]:
    """Finds biases of the base that were trained along."""
    bias = candidate.config.get("bias") or "none"
    names = [item.parameter for item in candidate.replaced if item.parameter.endswith(".bias")]
    if bias != "none":
        yield Problem(f"bias is {bias!r}", field="bias")
    elif names:
        yield Problem(f"{len(names)} biases of the base", tensor=names[0])


def token_rows(candidate: Candidate) -> Iterator[Problem]:
    """Finds rows of an embedding that were trained on their own."""
    rows = [item for item in candidate.replaced if item.rows is not None]
    if rows:
        count = sum(len(item.rows or ()) for item in rows)
        message = f"{count} trained token rows"
        yield Problem(message, tensor=rows[0].value.name, field="trainable_token_indices")


def whole_tensors(taken: Callable[[str], bool], what: str = "whole tensors") -> Check:
    """Finds tensors that take the base's place and whose parameter's name is `taken`."""

    def check(candidate: Candidate) -> Iterator[Problem]:
        found = [
            item
            for item in candidate.replaced
            if item.rows is None and not item.parameter.endswith(".bias") and taken(item.parameter)
        ]
        if found:
            saved = any(item.saved_module for item in found)
            message = f"{len(found)} {what} that replace the base's"
            field = "modules_to_save" if saved else None
            yield Problem(message, tensor=found[0].value.name, field=field)

    return check


def base_copies(candidate: Candidate) -> Iterator[Problem]:
    """Finds copies of the base's embeddings, which hold new rows where a vocabulary was resized."""
    every = candidate.adapter.replaced if candidate.adapter is not None else ()
    copies = [item.value.name for item in every if item.copied_base]
    if copies:
        message = f"{len(copies)} copies of the base's tensors; rows of new tokens would be lost"
        yield Problem(message, tensor=copies[0])


def changed_base(candidate: Candidate) -> Iterator[Problem]:
    """Finds an initialisation that changed the base before training."""
    init = candidate.adapter.changed_base if candidate.adapter is not None else None
    if init is not None:
        message = f"{init} changed the base before training, the base there is the original"
        yield Problem(message, field="init_lora_weights")


def of_form(form: Form, what: str) -> Check:
    """Finds updates of parameters of one form."""

    def check(candidate: Candidate) -> Iterator[Problem]:
        names = [delta.parameter for delta in candidate.deltas if delta.terms.form is form]
        if names:
            yield Problem(f"{len(names)} {what}", tensor=names[0])

    return check


def targeting(*modules: str) -> Check:
    """Finds updates of modules with these last names."""

    def check(candidate: Candidate) -> Iterator[Problem]:
        names = [delta.module for delta in candidate.deltas if last_name(delta) in modules]
        if names:
            yield Problem(f"{last_names(names)} is adapted", tensor=names[0])

    return check


def keys(pattern: str, what: str, *, start: bool = False) -> Check:
    """Finds tensors of the file whose names hold (or begin with) a regular expression."""
    expression = re.compile(pattern)
    search = expression.match if start else expression.search

    def check(candidate: Candidate) -> Iterator[Problem]:
        names = [name for name in candidate.files.tensors if search(name)]
        if names:
            yield Problem(f"{len(names)} {what}", tensor=names[0])

    return check


def scaled(there: Callable[[Candidate, Delta], float | None], why: str) -> Check:
    """Finds updates that a runtime, which scales by `there`, would scale otherwise than trained."""

    def check(candidate: Candidate) -> Iterator[Problem]:
        plain = [delta for delta in candidate.deltas if not _is_other(delta)]
        ranked = [delta for delta in plain if delta.terms.rank is not None]
        found = [(delta, there(candidate, delta)) for delta in ranked]
        wrong = [(delta, scale) for delta, scale in found if _differs(delta, scale)]
        if wrong:
            delta, scale = wrong[0]
            message = f"{len(wrong)} of {len(ranked)} modules: {scale:g} instead of "
            message += f"{delta.terms.scaling:g}, {why}"
            yield Problem(message, tensor=delta.module, field=_scale_field(candidate))

    return check


def _differs(delta: Delta, scale: float | None) -> bool:
    return scale is not None and not math.isclose(delta.terms.scaling, scale, rel_tol=_SAME_SCALE)


def _scale_field(candidate: Candidate) -> str | None:
    """The config's field that a reader of alpha and r alone misses."""
    fields = ("use_rslora", "alpha_pattern", "rank_pattern", "lora_alpha")
    return next((field for field in fields if candidate.config.get(field)), None)


def config_number(candidate: Candidate, field: str) -> float | None:
    """A number of the config, None where there is none."""
    value = candidate.config.get(field)
    return float(value) if isinstance(value, int | float) else None


def ranks(candidate: Candidate) -> Sequence[int]:
    """The rank of every update that has one."""
    return [delta.terms.rank for delta in candidate.deltas if delta.terms.rank is not None]


def last_name(delta: Delta) -> str:
    """`q_proj` of `model.layers.0.self_attn.q_proj`."""
    return delta.module.rpartition(".")[2]


def last_names(modules: Sequence[str]) -> str:
    """The modules' last names, each once."""
    return ", ".join(sorted({module.rpartition(".")[2] for module in modules}))
