"""The verbs that touch the network: pull and push."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptool.api.door import Progress
from adaptool.errors import AdaptoolError, ResourceError, UsageError
from adaptool.findings import Code, Finding, Severity
from adaptool.model.hub_results import PullResult, pulled_receipt
from adaptool.model.keywords import reads_keywords
from adaptool.model.receipt import OutputEntry, sums
from adaptool.remote.download import fetch, fetch_document
from adaptool.remote.hub import Origin, quiet
from adaptool.remote.selection import Wanted
from adaptool.remote.survey import survey
from adaptool.remote.uri import HubUri, check_local
from adaptool.store.checkpoint import LARGEST_INDEX_BYTES
from adaptool.store.digest import digest_of_bytes
from adaptool.store.disk import Disk, amount
from adaptool.store.documents import encode_json, parse_json_object, read_document
from adaptool.store.index import parse_index
from adaptool.store.own_files import LARGEST_RECEIPT, RECEIPT, SUMS
from adaptool.store.preflight import preflight
from adaptool.store.safe_names import printable
from adaptool.store.staging import Staging
from adaptool.store.weight_files import INDEX_SUFFIX

_SHOWN = 5


@reads_keywords
def pull(
    uri: str,
    out: Path | str,
    *,
    require_pinned: bool = False,
    allow_pickle: bool = False,
    max_bytes: int | None = None,
    checksum: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    disk: Disk | None = None,
) -> PullResult:
    """The adapter or model at `hf://owner/name[@revision][/subfolder]`, whole in directory `out`.

    The revision is resolved to a commit first, every file checked against its digest there.
    RemoteError (exit 6) where the Hub cannot be asked or refuses, IntegrityError (exit 9) for
    other bytes than the commit's, InputError (exit 3) for hostile names.
    Only what the artifact needs is pulled, pickles only where they are allowed. `require_pinned`
    refuses a revision that can move; more than `max_bytes` is a ResourceError (exit 7). `checksum`
    adds SHA256SUMS. A run that broke off is taken up by the next one.
    """
    place = HubUri.parse(uri)
    check_local(Path(out))
    if require_pinned and not place.pinned:
        message = "a branch or tag can move; --require-pinned wants the 40 digits of a commit"
        hint = f"write hf://{place.repo}@COMMIT"
        raise UsageError(message, code=Code.USAGE, file=uri, field="--require-pinned", hint=hint)
    pulling = _Pulling(place, Path(out), overwrite, progress, disk or Disk(), checksum)
    with quiet():
        origin, wanted = pulling.survey(allow_pickle=allow_pickle, max_bytes=max_bytes)
        if dry_run:
            return pulling.result(origin, [_expected(each) for each in wanted], dry_run=True)
        return pulling.run(origin, wanted)


@dataclass(frozen=True, slots=True)
class _Pulling:
    """One pull: what is asked for, and where it goes."""

    uri: HubUri
    out: Path
    overwrite: bool
    progress: Progress | None
    disk: Disk
    checksum: bool = False

    def survey(
        self, *, allow_pickle: bool, max_bytes: int | None
    ) -> tuple[Origin, tuple[Wanted, ...]]:
        """The commit that is meant and the files of it; checks that OUT can take them."""
        found = survey(self.uri, allow_pickle=allow_pickle)
        need = sum(each.file.size for each in found.wanted)
        _refuse_more(self.uri, found.wanted, need, max_bytes)
        preflight(self.out, (), overwrite=self.overwrite, need_bytes=need, disk=self.disk)
        return found.origin, found.wanted

    def run(self, origin: Origin, wanted: Sequence[Wanted]) -> PullResult:
        """Download, check, publish."""
        whole = {**_plan(origin, wanted), **({"checksum": True} if self.checksum else {})}
        plan = digest_of_bytes(json.dumps(whole).encode())
        count = _Counter(sum(each.file.size for each in wanted), self.progress)
        with ExitStack() as stack:
            opening = Staging.open(self.out, plan, self.disk, overwrite=self.overwrite)
            staging = stack.enter_context(opening)
            entries, made = [], None
            for each in wanted:
                if each.name == RECEIPT:
                    made = _their_receipt(origin, each)
                    continue
                sink = staging.sink(each.name, each.file.size)
                sha256 = fetch(origin, each.file, sink, count)
                staging.finished(sink)
                entries.append(OutputEntry(each.name, each.file.size, sha256))
            if self.checksum:
                staging.put(SUMS, sums(entries))
            body = pulled_receipt(str(self.uri), origin.repo, origin.commit, tuple(entries), made)
            staging.put(RECEIPT, encode_json(body, nonfinite=True))
            lacking = _lacking_shards(staging.payload, entries, str(self.uri))
            staging.commit()
            return self.result(origin, entries, (*staging.findings, *lacking))

    def result(
        self,
        origin: Origin,
        entries: Sequence[OutputEntry],
        findings: tuple[Finding, ...] = (),
        *,
        dry_run: bool = False,
    ) -> PullResult:
        """What is told of it."""
        return PullResult(
            self.out, origin.repo, origin.commit, tuple(entries), findings, dry_run=dry_run
        )


@dataclass(slots=True)
class _Counter:
    """Bytes done, told to whoever watches."""

    total: int
    progress: Progress | None
    done: int = 0

    def __call__(self, more: int) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(self.done, self.total)


def _refuse_more(uri: HubUri, wanted: Sequence[Wanted], need: int, most: int | None) -> None:
    if most is None or need <= most:
        return
    size = f"{len(wanted)} files of {amount(need)} ({need} bytes)"
    message = f"{size} would be pulled, more than {amount(most)} ({most} bytes)"
    hint = "raise the limit, or name one folder or file of the repository"
    code, field = Code.LIMIT_EXCEEDED, "--max-bytes"
    raise ResourceError(message, code=code, file=str(uri), field=field, hint=hint)


def _their_receipt(origin: Origin, wanted: Wanted) -> dict[str, Any]:
    raw = fetch_document(origin, wanted.file, limit_bytes=LARGEST_RECEIPT)
    return parse_json_object(raw, file=origin.file(wanted.file.path), nonfinite=True)


def _lacking_shards(root: Path, entries: Sequence[OutputEntry], place: str) -> tuple[Finding, ...]:
    """A warning where the commit itself lacks shards that its index names.

    What else is wrong with an index is for who reads it to say.
    """
    names = {entry.name for entry in entries}
    lacking: set[str] = set()
    for name in names:
        if name.endswith(INDEX_SUFFIX):
            with suppress(AdaptoolError):
                raw = read_document(root / name, limit_bytes=LARGEST_INDEX_BYTES, what="index")
                lacking.update({*parse_index(raw, file=name).shards} - names)
    if not lacking:
        return ()
    shown = ", ".join(map(printable, sorted(lacking)[:_SHOWN]))
    message = f"the repository lacks {len(lacking)} shards that its index names: {shown}"
    return (
        Finding(code=Code.SHARD_MISSING, severity=Severity.WARNING, message=message, file=place),
    )


def _expected(wanted: Wanted) -> OutputEntry:
    return OutputEntry(wanted.name, wanted.file.size, wanted.file.sha256)


def _plan(origin: Origin, wanted: Sequence[Wanted]) -> dict[str, Any]:
    """What a run that broke off is recognised by."""
    files = {each.name: [each.file.size, each.file.sha256 or each.file.oid] for each in wanted}
    return {"pull": origin.repo, "commit": origin.commit, "files": files}
