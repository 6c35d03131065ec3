"""One file per runtime that adapters are served in; a runtime is found by being here.

A file holds facts about one release of another program, read in its source: what it refuses, what
it ignores without a word, what it scales otherwise. None of them is asked, or needed, here.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from typing import Protocol, cast

from adaptool.discovery import marked
from adaptool.errors import UsageError
from adaptool.findings import Code, Finding, Severity
from adaptool.names.families import NEVER_UNTIED, model_types
from adaptool.names.tied import heads
from adaptool.runtimes.rules import Candidate, Problem, Rule, Runtime, Verdict, finding, worded
from adaptool.store.checkpoint import Checkpoint


class _Declared(Protocol):
    RUNTIME: Runtime


@functools.cache
def runtimes() -> Mapping[str, Runtime]:
    """Every runtime by name: what the modules of this package declare."""
    found = cast("Mapping[str, _Declared]", marked(__name__, __path__, "RUNTIME"))
    return {name: module.RUNTIME for name, module in found.items()}


def runtime(name: str) -> Runtime:
    """The runtime called `name`; UsageError where there is none."""
    known = runtimes()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else None
    message = f"{name!r} is no runtime known here: {', '.join(known)}"
    raise UsageError(message, code=Code.USAGE, field="--target", hint=hint)


def judged(target: Runtime, candidate: Candidate) -> Iterator[Finding]:
    """What becomes of the adapter in `target`: one finding for each rule that it meets."""
    for rule in (_of_layout(target), *target.rules):
        if rule.applies(candidate):
            for problem in rule.check(candidate):
                yield finding(target.title, rule, problem, candidate.files)


def _of_layout(target: Runtime) -> Rule:
    """The rule that every runtime has: which layouts it looks at."""

    def check(candidate: Candidate) -> Iterator[Problem]:
        if candidate.layout is not None and not target.reads(candidate.layout):
            yield Problem(f"it reads {target.layouts}; this is {candidate.layout}")

    return Rule("other layouts", target.unread, check, target.mend)


def judged_checkpoint(target: Runtime, checkpoint: Checkpoint) -> Iterator[Finding]:
    """What is known of a model in `target`: whether its family can be loaded untied there."""
    config = checkpoint.config or {}
    kinds = model_types(config)
    tied_there = next((NEVER_UNTIED[kind] for kind in kinds if kind in NEVER_UNTIED), ())
    endings = tuple(f".{name}" for name in heads(config))
    names = [name for name in checkpoint.tensors if f".{name}".endswith(endings)]
    apart = config.get("tie_word_embeddings") is False and names
    if apart and target.title in tied_there:
        message = f"{kinds[0]} models are always tied there, this one has a head of its own"
        yield Finding(
            Code.TIE_RUNTIME,
            Severity.ERROR,
            worded(target.title, target.untied, message),
            file=checkpoint.name,
            tensor=names[0],
            hint="merge with --tie keep, or serve it elsewhere",
        )
    message = f"the rules of {target.title} are about adapters; of a model, only ties are checked"
    yield Finding(Code.TARGET_UNCHECKED, Severity.NOTE, message, file=checkpoint.name)


__all__ = ["Candidate", "Runtime", "Verdict", "judged", "judged_checkpoint", "runtime", "runtimes"]
