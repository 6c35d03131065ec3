"""OUT: a place of this machine, or one commit in a repository on the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Self

from adaptool.api.attesting import Attesting
from adaptool.api.cards import Described
from adaptool.api.door import Progress
from adaptool.api.shipping import Card, Shipment
from adaptool.engine.besides import Besides
from adaptool.engine.run import Outcome
from adaptool.engine.write import Written, write_model, write_to
from adaptool.errors import UsageError
from adaptool.findings import Code, Finding
from adaptool.model.options import Machine
from adaptool.model.plan import Plan
from adaptool.model.published import Published
from adaptool.model.results import MergeStats
from adaptool.ops.encoding import SINGLE_FILES, single_file
from adaptool.remote.hub import client, quiet
from adaptool.remote.outbox import Outbox
from adaptool.remote.outgoing import check_sendable
from adaptool.remote.upload import (
    Pushed,
    Target,
    Upload,
    check_branch,
    refuse_mixture,
    target,
)
from adaptool.remote.uri import HubUri
from adaptool.store.addresses import hub_uri
from adaptool.store.disk import Disk
from adaptool.store.passing import check_passing_room, passing_directory
from adaptool.store.passing_files import PassingFiles
from adaptool.store.preflight import preflight

_AT_A_TIME = 2  # shards on the disk: one that is filled, one that is sent


@dataclass(frozen=True, slots=True)
class Delivered:
    """What came of writing: the engine's outcome, remarks, and the commit where there is one."""

    outcome: Outcome
    findings: tuple[Finding, ...]
    published: Published | None = None

    @classmethod
    def nothing(cls, device: str, findings: tuple[Finding, ...] = ()) -> Self:
        """What a dry run leaves."""
        return cls(Outcome(device, MergeStats(None, None)), findings)


@dataclass(frozen=True, slots=True)
class Output:
    """OUT, and who writes it how: the same for every verb.

    On the Hub, `check` asks nothing of the network. `write` first sees that the repository can
    take the output, and makes it where there is none; a repository keeps its history, so nothing
    there is lost and `overwrite` is not needed.
    """

    out: Path
    command: str
    machine: Machine
    overwrite: bool
    progress: Progress | None
    disk: Disk
    attesting: Attesting
    private: bool = False
    may_be_file: bool = False

    @property
    def uri(self) -> HubUri | None:
        """The address, None for a path of this machine; UsageError (exit 2) for a bad one."""
        address = hub_uri(self.out)
        return None if address is None else HubUri.parse(address)

    @property
    def file_name(self) -> str | None:
        """The name of the one file that OUT is, None where it is a directory."""
        uri = self.uri
        if not self.may_be_file:
            return None
        if uri is None:
            return self.out.name if single_file(self.out) else None
        inside = PurePosixPath(uri.folder)
        return inside.name if inside.suffix.lower() in SINGLE_FILES else None

    def check(
        self, plan: Plan, inputs: Sequence[Path], *, more_bytes: int = 0, streamed: bool = False
    ) -> None:
        """What can be said before the first byte; `more_bytes` come on top of the plan's.

        OutputError (exit 5) and UsageError (exit 2) as `preflight`; InputError (exit 3) where
        what would be sent is a pickle or holds an access token.
        """
        uri, need = self.uri, plan.bytes + more_bytes
        single_file = self.file_name is not None
        self.attesting.check(
            self.out, inputs, self.disk, overwrite=self.overwrite, single_file=single_file
        )
        if uri is None:
            self._check_not_private()
            preflight(
                self.out,
                inputs,
                overwrite=self.overwrite,
                need_bytes=need,
                disk=self.disk,
                single_file=single_file,
            )
            return
        check_branch(uri)
        check_sendable(_small_files(plan))
        if streamed:
            need = _most_at_a_time(plan)
        what = "two shards at a time" if streamed else "the files of the output"
        check_passing_room(need, self.disk, what)

    def write(self, plan: Plan, *, besides: Besides | None = None) -> Delivered:
        """Write it; to the Hub it goes from a passing directory, in one commit."""
        uri, name = self.uri, self.file_name
        write = partial(
            write_model,
            checksum=self.attesting.digests,
            progress=self.progress,
            disk=self.disk,
            besides=besides,
        )
        if uri is None:
            single, over = name is not None, self.overwrite
            written = write(
                plan, self.out, self.command, self.machine, overwrite=over, single_file=single
            )
            return self._delivered(written)
        place = uri if name is None else replace(uri, folder=_folder_of(uri.folder))
        with ExitStack() as stack:
            stack.enter_context(quiet())
            goal = self._goal(place, plan)
            card = _card(goal)
            here = passing_directory(stack, "made") / (name or "out")
            written = write(plan, here, self.command, self.machine, single_file=name is not None)
            shipment = Shipment.of(here, place)
            if not place.folder:
                shipment = shipment.carded(card)
            pushed = shipment.send(goal, self._message, self.progress)
        return self._delivered(written, pushed)

    def stream(self, plan: Plan) -> Delivered:
        """Write it; to the Hub it goes file by file, each removed here when it is there."""
        uri = self.uri
        if uri is None:
            return self.write(plan)
        with ExitStack() as stack:
            stack.enter_context(quiet())
            goal = self._goal(uri, plan)
            card = _card(goal)

            def told(folder: Path) -> str:
                return card.told(Described.planned(plan, folder).facts(uri.repo))

            files = PassingFiles(passing_directory(stack, "out"), self.disk)
            outbox = stack.enter_context(
                Outbox(goal, files, self._message, card=None if uri.folder else told)
            )
            written = write_to(
                outbox,
                plan,
                self.command,
                self.machine,
                checksum=self.attesting.digests,
                progress=self.progress,
            )
        return self._delivered(written, outbox.pushed)

    def _check_not_private(self) -> None:
        if self.private:
            message = "says that a repository must be private, and OUT is a path of this machine"
            raise UsageError(message, code=Code.USAGE, file=str(self.out), field="--private")

    def _delivered(self, written: Written, pushed: Pushed | None = None) -> Delivered:
        """It is there: what was asked for about it is written now."""
        uri = self.uri
        name = self.out.name if uri is None else uri.repo
        self.attesting.write(written.receipt, name, self.disk, overwrite=self.overwrite)
        said = () if pushed is None else pushed.findings(str(self.uri))
        return Delivered(written.outcome, (*written.findings, *said), _published(pushed))

    @property
    def _message(self) -> str:
        return f"{self.command.capitalize()} with adaptool"

    def _goal(self, uri: HubUri, plan: Plan) -> Target:
        """The repository, made where there is none, to which this token may write the output."""
        goal = target(client(), uri, private=self.private, create_pr=False)
        names = [file.name for file in plan.files]
        refuse_mixture(goal, [*names, *(document.name for document in plan.documents)])
        Upload(goal).check_permission()
        return goal


def _card(goal: Target) -> Card:
    """The card that stands there, seen to be one that the Hub takes."""
    card = Card(None) if goal.uri.folder else Card.there(goal)
    card.check()
    return card


def _published(pushed: Pushed | None) -> Published | None:
    return None if pushed is None else Published(pushed.commit, pushed.url)


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def _small_files(plan: Plan) -> Iterator[tuple[str, Path | bytes]]:
    """The documents, and the headers of the weights."""
    yield from _documents(plan)
    yield from ((file.name, file.header) for file in plan.files)


def _documents(plan: Plan) -> Iterator[tuple[str, Path | bytes]]:
    for document in plan.documents:
        yield document.name, document.copy_of or document.content or b""


def _most_at_a_time(plan: Plan) -> int:
    """Bytes that lie here at once where files are sent one by one: two shards, all documents."""
    largest = sorted(file.size for file in plan.files)[-_AT_A_TIME:]
    return sum(largest) + sum(_size(content) for _, content in _documents(plan))


def _size(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)
