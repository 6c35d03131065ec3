"""From a plan to a published directory: stage, fill, finish, receipt, commit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from adaptool.engine.arithmetic import check_device
from adaptool.engine.besides import Besides
from adaptool.engine.outlets import FileOutlet, Outlet
from adaptool.engine.retention import lost_deltas
from adaptool.engine.run import Outcome, Progress, run
from adaptool.engine.tiles import TILE_ELEMENTS
from adaptool.findings import Finding
from adaptool.model.options import Machine
from adaptool.model.plan import Document, Plan, Row
from adaptool.model.receipt import RECEIPT, SUMS, OutputEntry, receipt
from adaptool.store.digest import sha256_of
from adaptool.store.disk import Disk
from adaptool.store.documents import encode_json
from adaptool.store.local import LocalSource
from adaptool.store.sink import FileSink
from adaptool.store.source import Source, check_unchanged
from adaptool.store.staging import Staging


@dataclass(frozen=True, slots=True)
class Written:
    """What a run left: the engine's outcome, and what publishing had to say."""

    outcome: Outcome
    findings: tuple[Finding, ...]


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
    kept = disk or Disk()
    with ExitStack() as stack:
        opening = Staging.open(
            out, plan.digest(), kept, overwrite=overwrite, single_file=single_file
        )
        staging = stack.enter_context(opening)
        if besides is not None:
            stack.callback(besides.close)
        outcome = _fill(plan, staging, machine, progress, tile_elements, besides=besides)
        more = besides.finish(staging) if besides is not None else ()
        lost = lost_deltas(plan, outcome.stats)
        if not single_file:
            _put_documents(staging, plan, command, outcome, more, checksum=checksum)
        _check_unchanged(plan)
        staging.commit()
        return Written(outcome, (*staging.findings, *lost))


def _put_documents(
    staging: Staging,
    plan: Plan,
    command: str,
    outcome: Outcome,
    more: Sequence[OutputEntry],
    *,
    checksum: bool,
) -> None:
    """The small files, the checksums where asked for, and the receipt of all."""
    outputs = [*more, *(_document(staging, document) for document in plan.documents)]
    outputs += [OutputEntry(file.name, file.size) for file in plan.files]
    outputs.sort(key=lambda entry: entry.name)
    if checksum:
        outputs = [_hashed(staging.placement.payload, entry) for entry in outputs]
        _put(staging, SUMS, _sums(outputs))
    _put(staging, RECEIPT, encode_json(receipt(command, plan, outputs, outcome.stats)))


def _check_unchanged(plan: Plan) -> None:
    """IntegrityError where an input changed while it was read, base or adapter."""
    for source in {id(source): source for source in _sources(plan)}.values():
        check_unchanged(source)


def _sources(plan: Plan) -> Iterator[Source]:
    for planned in plan.rows:
        yield planned.source.source
        row = planned.computed
        yield row.source.source
        yield from (blend.value.source for blend in row.blends)
        for piece in row.pieces:
            yield from (ref.source for ref in piece.delta.roles.values())


def _fill(
    plan: Plan,
    staging: Staging,
    machine: Machine,
    progress: Progress | None,
    tile_elements: int,
    *,
    besides: Besides | None,
) -> Outcome:
    """All weights files: headers, then every seat; each is made durable behind the work."""
    sinks: dict[str, FileSink] = {}
    finishing: list[Future[None]] = []
    seated: dict[str, list[Row]] = {file.name: [] for file in plan.files}
    for row in plan.rows:
        seated[row.file].append(row)
    with ThreadPoolExecutor(1, thread_name_prefix="adaptool-fsync") as finisher:

        def finish(name: str) -> None:
            finishing.append(finisher.submit(staging.finished, sinks[name]))

        files = FileOutlet(sinks, finish)
        for file in plan.files:
            sinks[file.name] = staging.sink(file.name, file.size)
            sinks[file.name].write(0, memoryview(file.header))
            seats = seated[file.name]
            _fill_gaps(sinks[file.name], len(file.header), seats)
            files.expect(file.name, sum(row.length for row in seats))
        outlet: Outlet = files
        if besides is not None:
            outlet = besides.outlet(files, sinks, staging.placement.partial)
        outcome = run(plan, outlet, machine, progress=progress, tile_elements=tile_elements)
        for future in finishing:
            future.result()
    return outcome


def _fill_gaps(sink: FileSink, start: int, rows: Sequence[Row]) -> None:
    """Zeros wherever no tensor has its seat, as formats that align their tensors want it."""
    seats = sorted((row.offset, row.offset + row.length) for row in rows)
    for begin, end in (*seats, (sink.size, sink.size)):
        if begin > start:
            sink.write(start, memoryview(bytes(begin - start)))
        start = max(start, end)


def _document(staging: Staging, document: Document) -> OutputEntry:
    if document.copy_of is None:
        _put(staging, document.name, document.content or b"")
        return OutputEntry(document.name, len(document.content or b""))
    with LocalSource(document.copy_of) as source:
        sink = staging.sink(document.name, source.size)
        sink.copy_from(source, 0, 0, source.size)
        staging.finished(sink)
        return OutputEntry(document.name, source.size)


def _put(staging: Staging, name: str, content: bytes) -> None:
    sink = staging.sink(name, len(content))
    sink.write(0, memoryview(content))
    staging.finished(sink)


def _hashed(folder: Path, entry: OutputEntry) -> OutputEntry:
    with LocalSource(folder / entry.name) as source:
        return OutputEntry(entry.name, entry.bytes, sha256_of(source))


def _sums(outputs: Sequence[OutputEntry]) -> bytes:
    """coreutils' format: `sha256sum -c SHA256SUMS` checks the directory."""
    return "".join(f"{entry.sha256}  {entry.name}\n" for entry in outputs).encode()
