"""From a plan to a published directory: stage, fill, finish, receipt, commit."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptool.engine.arithmetic import check_device
from adaptool.engine.besides import Besides
from adaptool.engine.outlets import FileOutlet, Outlet
from adaptool.engine.retention import lost_deltas, rounded_away
from adaptool.engine.run import Outcome, Progress, run
from adaptool.engine.tiles import TILE_ELEMENTS
from adaptool.findings import Finding
from adaptool.model.options import Machine
from adaptool.model.plan import Document, OutputFile, Plan, Row
from adaptool.model.receipt import OutputEntry, receipt, sums
from adaptool.store.disk import Disk
from adaptool.store.documents import encode_json
from adaptool.store.local import LocalSource
from adaptool.store.own_files import RECEIPT, SUMS
from adaptool.store.sink import FileSink
from adaptool.store.source import check_unchanged
from adaptool.store.stage import Stage
from adaptool.store.staging import Staging


@dataclass(frozen=True, slots=True)
class Written:
    """What a run left: the engine's outcome, what publishing had to say, the receipt's object.

    A single file has a receipt here, too, though none lies beside it.
    """

    outcome: Outcome
    findings: tuple[Finding, ...]
    receipt: Mapping[str, Any]


def write_model(
    plan: Plan,
    out: Path,
    command: str,
    machine: Machine,
    *,
    overwrite: bool = False,
    checksum: bool = False,
    progress: Progress | None = None,
    disk: Disk | None = None,
    tile_elements: int = TILE_ELEMENTS,
    single_file: bool = False,
    besides: Besides | None = None,
) -> Written:
    """Write the plan's output to `out`, whole or not at all.

    With `single_file`, `out` is the plan's one file: no document and no receipt lies beside it.

    `besides` sees what is written and adds files of its own.

    OutputError and what else goes wrong leave `out` as it was; an interrupted run stays staged
    and is taken up by the same command.
    """
    check_device(machine)
    opening = Staging.open(
        out, plan.digest(), disk or Disk(), overwrite=overwrite, single_file=single_file
    )
    with opening as staging:
        return write_to(
            staging,
            plan,
            command,
            machine,
            checksum=checksum,
            progress=progress,
            tile_elements=tile_elements,
            bare=single_file,
            besides=besides,
        )


def write_to(
    stage: Stage,
    plan: Plan,
    command: str,
    machine: Machine,
    *,
    checksum: bool = False,
    progress: Progress | None = None,
    tile_elements: int = TILE_ELEMENTS,
    bare: bool = False,
    besides: Besides | None = None,
) -> Written:
    """Fill the stage with the plan's output and publish it; `bare`: without documents."""
    with ExitStack() as stack:
        if besides is not None:
            stack.callback(besides.close)
        outcome = _fill(plan, stage, machine, progress, tile_elements, besides=besides)
        more = besides.finish(stage) if besides is not None else ()
        lost = lost_deltas(plan, outcome.stats)
        if command == "merge":
            lost += rounded_away(outcome.stats)
        outputs = _outputs(stage, plan, () if bare else plan.documents, more, checksum=checksum)
        made = receipt(command, plan, outputs, outcome.stats)
        if not bare:
            if checksum:
                _put(stage, SUMS, sums(outputs))
            _put(stage, RECEIPT, encode_json(made))
        _check_unchanged(plan)
        stage.commit()
        return Written(outcome, (*stage.findings, *lost), made)


def _outputs(
    stage: Stage,
    plan: Plan,
    documents: Sequence[Document],
    more: Sequence[OutputEntry],
    *,
    checksum: bool,
) -> Sequence[OutputEntry]:
    """Writes the small files; all files by name, with their digests where asked for."""
    outputs = [*more, *(_document(stage, document) for document in documents)]
    outputs += [OutputEntry(file.name, file.size) for file in plan.files]
    outputs.sort(key=lambda entry: entry.name)
    if checksum:
        outputs = [replace(entry, sha256=stage.digest(entry.name)) for entry in outputs]
    return outputs


def _check_unchanged(plan: Plan) -> None:
    """IntegrityError where an input changed while it was read, base or adapter."""
    read = (source for row in plan.rows for source in row.sources())
    for source in {id(source): source for source in read}.values():
        check_unchanged(source)


def _fill(
    plan: Plan,
    stage: Stage,
    machine: Machine,
    progress: Progress | None,
    tile_elements: int,
    *,
    besides: Besides | None,
) -> Outcome:
    """All weights files: headers, then every seat; each is finished behind the work."""
    with ThreadPoolExecutor(1, thread_name_prefix="adaptool-finish") as finisher:
        files = _Files(plan, stage, finisher)
        outlet: Outlet = files.outlet
        if besides is not None:
            outlet = besides.outlet(files.outlet, files.sinks, stage.folder)
        try:
            outcome = run(
                plan,
                outlet,
                machine,
                progress=progress,
                tile_elements=tile_elements,
                hands_over=stage.hands_over,
                opening=files.open,
            )
            files.wait(until=0)
        except BaseException:
            stage.break_off()  # else the finisher would be waited for
            raise
    return outcome


class _Files:
    """The weights files of one plan, opened when they are filled, finished beside the work."""

    def __init__(self, plan: Plan, stage: Stage, finisher: ThreadPoolExecutor) -> None:
        self._plan, self._stage, self._finisher = plan, stage, finisher
        self._finishing: deque[Future[None]] = deque()
        self.sinks: dict[str, FileSink] = {}
        self.outlet = FileOutlet(self.sinks, self._finish)

    def open(self, names: Sequence[str]) -> None:
        """Reserve the files that are filled next.

        Where finished files leave, all have left but the one before.
        """
        if self._stage.hands_over and names:
            self.wait(until=1)
        seated: dict[str, list[Row]] = {name: [] for name in names}
        for row in self._plan.rows:
            if row.file in seated:
                seated[row.file].append(row)
        for file in self._plan.files:
            if file.name in seated:
                self._begin(file, seated[file.name])

    def wait(self, *, until: int) -> None:
        """Wait until at most `until` files are being finished; raises what went wrong."""
        while len(self._finishing) > until:
            self._finishing.popleft().result()

    def _begin(self, file: OutputFile, seats: Sequence[Row]) -> None:
        sink = self.sinks[file.name] = self._stage.sink(file.name, file.size)
        sink.write(0, memoryview(file.header))
        _fill_gaps(sink, len(file.header), seats)
        self.outlet.expect(file.name, sum(row.length for row in seats))

    def _finish(self, name: str) -> None:
        """The file has its last byte."""
        self._finishing.append(self._finisher.submit(self._stage.finished, self.sinks[name]))


def _fill_gaps(sink: FileSink, start: int, rows: Sequence[Row]) -> None:
    """Zeros wherever no tensor has its seat, as formats that align their tensors want it."""
    seats = sorted((row.offset, row.offset + row.length) for row in rows)
    for begin, end in (*seats, (sink.size, sink.size)):
        if begin > start:
            sink.write(start, memoryview(bytes(begin - start)))
        start = max(start, end)


def _document(stage: Stage, document: Document) -> OutputEntry:
    if document.copy_of is None:
        _put(stage, document.name, document.content or b"")
        return OutputEntry(document.name, len(document.content or b""))
    with LocalSource(document.copy_of) as source:
        sink = stage.sink(document.name, source.size)
        sink.copy_from(source, 0, 0, source.size)
        stage.finished(sink)
        return OutputEntry(document.name, source.size)


def _put(stage: Stage, name: str, content: bytes) -> None:
    sink = stage.sink(name, len(content))
    sink.write(0, memoryview(content))
    stage.finished(sink)
