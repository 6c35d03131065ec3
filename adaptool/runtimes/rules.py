"""What a runtime's file states: what it reads, and what it does otherwise than was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from adaptool.findings import Code, Finding, Severity
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.store.adapter_files import AdapterFiles

# What mends most of it: every runtime reads a merged model.
MERGE = "adaptool merge BASE ADAPTER OUT, and serve the merged model"


class Verdict(StrEnum):
    """What becomes of something in a runtime; the first word of the finding's message."""

    REFUSED = "refused"
    IGNORED = "ignored"
    MIS_SCALED = "mis-scaled"
    CONDITIONAL = "conditional"


_CODES = {
    Verdict.REFUSED: Code.TARGET_REFUSED,
    Verdict.IGNORED: Code.TARGET_IGNORED,
    Verdict.MIS_SCALED: Code.TARGET_MIS_SCALED,
    Verdict.CONDITIONAL: Code.TARGET_CONDITIONAL,
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter as a runtime would meet it.

    `adapter` is None where it could not be decoded: its file and its config are judged all the
    same. `layout` is None where nothing claims the file's keys; `family` is the architecture of a
    diffusion model's adapter, as far as it is known. `base` is the config of the base that it is
    checked against, `base_tensors` the names and shapes of its tensors.
    """

    files: AdapterFiles
    adapter: Adapter | None
    layout: str | None
    base: Mapping[str, Any] | None = None
    base_tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    family: str | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """The file's own config, unchecked; empty where there is none."""
        return self.files.config or {}

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """Every update, none where the adapter could not be decoded."""
        return self.adapter.deltas if self.adapter is not None else ()

    @property
    def replaced(self) -> tuple[Replaced, ...]:
        """Every tensor that takes the base's place, copies of the base left out."""
        every = self.adapter.replaced if self.adapter is not None else ()
        return tuple(item for item in every if not item.copied_base)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that a check found; `mend` where the rule's own does not do."""

    message: str
    tensor: str | None = None
    field: str | None = None
    mend: str | None = None


Check = Callable[[Candidate], Iterable[Problem]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of a runtime's table: what it is about, what becomes of it, what mends it.

    `layouts` restricts the rule to files of these layouts. `harmless`: being ignored does not
    change what the model computes.
    """

    about: str
    verdict: Verdict
    check: Check
    mend: str
    layouts: frozenset[str] | None = None
    harmless: bool = False

    @property
    def severity(self) -> Severity:
        """Error, but a warning for what is harmless or depends on how the runtime is started."""
        mild = self.harmless or self.verdict is Verdict.CONDITIONAL
        return Severity.WARNING if mild else Severity.ERROR

    def applies(self, candidate: Candidate) -> bool:
        """Whether the rule is about files of the candidate's layout."""
        return self.layouts is None or candidate.layout in self.layouts


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a runtime's file declares.

    `version` is the release whose source the rules were read from. `reads` says whether files of a
    layout are looked at, `layouts` the same in words; what is not is `unread`, and `mend` converts
    it. `untied` is what becomes of the head of a model that was untied although its family's
    implementation there ties it.
    """

    title: str
    version: str
    layouts: str
    reads: Callable[[str], bool]
    mend: str
    rules: tuple[Rule, ...]
    unread: Verdict = Verdict.REFUSED
    untied: Verdict = Verdict.IGNORED


def finding(title: str, rule: Rule, problem: Problem, files: AdapterFiles) -> Finding:
    """The problem as `validate` reports it: `VERDICT by TITLE: what`."""
    return Finding(
        _CODES[rule.verdict],
        rule.severity,
        worded(title, rule.verdict, problem.message),
        file=files.source.name if problem.field is None else files.config_file,
        tensor=problem.tensor,
        field=problem.field,
        hint=problem.mend or rule.mend,
    )


def worded(title: str, verdict: Verdict, message: str) -> str:
    """A finding's message: `refused by vLLM: ...`."""
    return f"{verdict} {'in' if verdict is Verdict.CONDITIONAL else 'by'} {title}: {message}"


def only(*names: str) -> Callable[[str], bool]:
    """`reads` of a runtime that looks at these layouts alone."""
    return frozenset(names).__contains__
