"""The verb that does the steps of a recipe."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptool.api.door import Progress
from adaptool.api.recipe_verbs import RecipeVerbs
from adaptool.errors import AdaptoolError, RemoteError
from adaptool.findings import Code
from adaptool.model.keywords import reads_keywords
from adaptool.model.receipt import versions
from adaptool.model.run_results import RunResult, StepResult, StepStatus
from adaptool.recipes.checking import ReadyStep, ready_steps, refuse_outside, refuse_within
from adaptool.recipes.contents import Contents
from adaptool.recipes.document import read_yaml
from adaptool.recipes.place import Place
from adaptool.recipes.recipe import Recipe, recipe_of
from adaptool.recipes.state import BEGUN, Done, State, read_state
from adaptool.recipes.variables import Variables, variables_of
from adaptool.recipes.words import Result
from adaptool.remote.hub import client, quiet
from adaptool.remote.hub import state as repository
from adaptool.remote.uri import HubUri
from adaptool.store.addresses import is_address
from adaptool.store.disk import Disk
from adaptool.store.folders import make_folder_of
from adaptool.store.safe_names import printable
from adaptool.store.single_file import write_file

Watch = Callable[[str], AbstractContextManager[Progress | None]]
"""Opened with a title around each step; what it yields is told of the step's progress."""

# Who does the work never changes what comes out.
_NOT_WORK = frozenset({"device", "threads"})


@reads_keywords
def run(
    recipe: Path | str,
    *,
    set: Mapping[str, object] | None = None,  # noqa: A002 - named like the flag
    force: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    device: str | None = None,
    threads: int | None = None,
    watch: Watch | None = None,
    disk: Disk | None = None,
) -> RunResult:
    """Do the steps of the YAML file `recipe`, in order; skip those that are done and unchanged.

    The whole recipe is checked before its first step: InputError or UsageError, with all that is
    wrong, and nothing done. A step that fails ends the run: the result is then not `ok` and has
    its error. `set` gives the declared variables; `force` skips nothing; `overwrite` lets steps
    replace what an earlier run did not make. `device` and `threads` are for steps that name none.
    """
    path = Path(recipe)
    file = printable(str(path))
    table = RecipeVerbs.known()
    read = recipe_of(read_yaml(path), file)
    variables = variables_of(read, {name: _text(value) for name, value in (set or {}).items()})
    steps = ready_steps(read, table.verbs, table.judges, variables)
    state_file = _state_file(path, read, variables)
    refuse_within(str(state_file), steps, file)
    machine = {"device": device, "threads": threads}
    running = _Running(
        steps=steps,
        state_file=state_file,
        force=force,
        overwrite=overwrite,
        machine={name: value for name, value in machine.items() if value is not None},
        watch=watch or _unwatched,
        disk=disk or Disk(),
        contents=Contents(),
    )
    results = tuple(running.planned() if dry_run else running.done())
    return RunResult(path, results, dry_run=dry_run)


@dataclass(frozen=True, slots=True)
class _Running:
    """Ready steps, and how they are done."""

    steps: tuple[ReadyStep, ...]
    state_file: Path
    force: bool
    overwrite: bool
    machine: Mapping[str, Any]
    watch: Watch
    disk: Disk
    contents: Contents

    def planned(self) -> Iterator[StepResult]:
        """What would become of each step, as far as can be known before any has run."""
        state, anew = read_state(self.state_file), False
        for step in self.steps:
            before = None if anew else self._before(step, state)
            # One step that runs may change what all later ones read.
            anew = anew or before is None
            yield _skipped(step, before) if before else _result(step, StepStatus.WOULD_RUN)

    def done(self) -> Iterator[StepResult]:
        """Do each step; after one that failed, none."""
        state, failed = read_state(self.state_file), False
        for step in self.steps:
            if failed:
                yield _result(step, StepStatus.NOT_RUN)
                continue
            result, state = self._step(step, state)
            failed = result.status is StepStatus.FAILED
            yield result

    def _step(self, step: ReadyStep, state: State) -> tuple[StepResult, State]:
        began = time.monotonic()
        try:
            work = self._work(step)
            before = self._unchanged(work, state)
            if before is not None:
                return _skipped(step, before), state
            announced = self._announced(step, work, state)
            outcome = self._call(step, state)
            body = outcome.as_json()
            if _ok(outcome, body):
                outputs = self._outputs(step, work)
                announced = self._saved(
                    announced.having(replace(work, outputs=outputs, result=_timeless(body)))
                )
        except AdaptoolError as error:
            return _result(step, StepStatus.FAILED, began, error=error), state
        status = StepStatus.DONE if _ok(outcome, body) else StepStatus.FAILED
        return _result(step, status, began, body=body, outcome=outcome), announced

    def _before(self, step: ReadyStep, state: State) -> Done | None:
        """When the step was done, where nothing has changed since."""
        return self._unchanged(self._work(step), state)

    def _unchanged(self, work: Done, state: State) -> Done | None:
        before = None if self.force else state.find(work)
        if before is None:
            return None
        try:
            now = self._digests(before.outputs, before.options)
        except RemoteError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            return None
        return before if before.outputs == now else None

    def _work(self, step: ReadyStep) -> Done:
        """What the step is asked to do, as the state knows it; nothing is made yet."""
        options = {word: value for word, value in step.options.items() if word not in _NOT_WORK}
        inputs = self._digests(dict.fromkeys(step.reads), {})
        version = versions()["adaptool"]
        return Done(step.name, step.verb.name, version, options, inputs, {}, {})

    def _digests(self, paths: Mapping[str, object], options: Mapping[str, Any]) -> dict[str, str]:
        """What lies at each path now: the commit of an address, the digest of a file."""
        return {
            path: _commit(path, options) if is_address(path) else self.contents.of(path)
            for path in paths
        }

    def _announced(self, step: ReadyStep, work: Done, state: State) -> State:
        """The state that says that the step is about to write, where it may.

        If the run is killed before it can say more, what lies there then is known for its own.
        """
        if not step.writes or not all(self._may_write(path, state) for path in step.makes):
            return state
        return self._saved(state.having(replace(work, outputs=dict.fromkeys(step.writes, BEGUN))))

    def _call(self, step: ReadyStep, state: State) -> Result:
        """What the verb returns; where it fails, `state` is saved again unless it has written."""
        for path in step.makes:
            make_folder_of(Path(path), self.disk)
        there = [path for path in step.makes if os.path.lexists(path)]
        replaces = all(self._may_write(path, state) for path in there) and bool(there)
        given = {**self.machine, "overwrite": self.overwrite or replaces, "disk": self.disk}
        try:
            with self.watch(f"{step.name} ({step.verb.name})") as progress:
                return step.verb.call_with({**given, "progress": progress}, step.values)
        except AdaptoolError as error:
            self._explain(error, there, state)
            if step.writes and not any(map(os.path.lexists, {*step.makes} - {*there})):
                with suppress(AdaptoolError):
                    self._saved(state)
            raise

    def _may_write(self, path: str, state: State) -> bool:
        """Whether the place is free, or what lies there may be lost: asked for, or our own.

        Of a directory the receipt in it says more when it is replaced, file by file.
        """
        made = state.made(path)
        if self.overwrite or not os.path.lexists(path):
            return True
        if made is None or made == BEGUN or Path(path).is_dir():
            return made is not None
        return self.contents.of(path) == made

    def _explain(self, error: AdaptoolError, there: Sequence[str], state: State) -> None:
        """Say of an output that is in the way that it was ours and has been edited."""
        edited = (path for path in there if state.made(path) and not self._may_write(path, state))
        if error.code is Code.OUTPUT_EXISTS and any(edited):
            error.message = "was changed since an earlier run of this recipe made it"
            error.hint = "move it away, or give --overwrite to have it made again"

    def _outputs(self, step: ReadyStep, work: Done) -> dict[str, str]:
        """What the step has written."""
        if step.writes:
            self.contents.changed()
        return self._digests(dict.fromkeys(step.writes), work.options)

    def _saved(self, state: State) -> State:
        """`state`, once it is on the disk."""
        make_folder_of(self.state_file, self.disk)
        write_file(self.state_file, state.encoded(), self.disk, overwrite=True)
        return state


def _state_file(path: Path, recipe: Recipe, variables: Variables) -> Path:
    """Where the recipe says, else beside it: `release.yaml` has `release.state.json`."""
    if recipe.state is None:
        return path.with_name(f"{path.stem}.state.json")
    place = Place(recipe.file, recipe.state.line, "state")
    name = variables.put_into(recipe.state.text, place)
    refuse_outside(name, recipe.state.text, variables, place)
    return Path(name)


def _text(value: object) -> str:
    """A variable as it stands in YAML: true, not True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _commit(uri: str, options: Mapping[str, Any]) -> str:
    """The commit that an address means now; none for a pull request, which is on no branch."""
    place = HubUri.parse(uri)
    if place.pinned or options.get("create-pr"):
        return place.revision or "pull request"
    with quiet():
        return repository(client(), place.repo, place.revision, str(place)).commit


def _unwatched(title: str) -> AbstractContextManager[Progress | None]:
    del title
    return nullcontext()


def _ok(outcome: Result, body: Mapping[str, Any]) -> bool:
    """Whether a check said yes; True for what checks nothing."""
    return bool(getattr(outcome, "ok", body.get("ok", True)))


def _timeless(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a verb answered, without how long it took: the same work leaves the same state."""
    return {name: value for name, value in body.items() if name != "seconds"}


def _skipped(step: ReadyStep, before: Done) -> StepResult:
    return StepResult(step.name, step.verb.name, StepStatus.SKIPPED, result=before.result)


def _result(
    step: ReadyStep,
    status: StepStatus,
    began: float | None = None,
    *,
    body: Mapping[str, Any] | None = None,
    outcome: Result | None = None,
    error: AdaptoolError | None = None,
) -> StepResult:
    return StepResult(
        step.name,
        step.verb.name,
        status,
        seconds=None if began is None else round(time.monotonic() - began, 3),
        result=body,
        findings=outcome.findings if outcome is not None else (),
        error=error,
    )
