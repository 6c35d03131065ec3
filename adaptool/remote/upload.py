"""One atomic commit: large files first, one by one, then all names at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from adaptool.errors import IntegrityError, MismatchError, RemoteError, UsageError
from adaptool.findings import Code, Finding, Severity
from adaptool.remote.cached import is_offline
from adaptool.remote.failures import told
from adaptool.remote.hub import (
    Origin,
    RemoteFile,
    patiently,
    quiet,
    state,
    tree,
    wait_or_raise,
)
from adaptool.remote.outgoing import Outgoing
from adaptool.remote.uri import HubUri
from adaptool.store.local import unreadable
from adaptool.store.model_card import CARD_FILE
from adaptool.store.safe_names import printable
from adaptool.store.weight_files import INDEX_SUFFIX, WEIGHTS_SUFFIX

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

Count = Callable[[int], None]

_NO_SUCH_ROUTE = frozenset({400, 404, 405, 410, 501})
"""What servers without Xet answer when they are asked for a token to write with it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a push goes: the repository and branch, and the commit that it builds on."""

    origin: Origin
    uri: HubUri
    files: Mapping[str, RemoteFile]
    create_pr: bool

    def name(self, name: str) -> str:
        """The path in the repository of the artifact's file `name`."""
        return f"{self.uri.folder}/{name}" if self.uri.folder else name


@dataclass(frozen=True, slots=True)
class Pushed:
    """The commit that was made, or the one that held everything already; where to look at it."""

    commit: str
    url: str
    changed: bool = True

    def findings(self, place: str) -> tuple[Finding, ...]:
        """What is to be said of it."""
        if self.changed:
            return ()
        what = "the repository holds exactly this already: no new commit was made"
        return (Finding(code=Code.NOTHING_TO_DO, severity=Severity.NOTE, message=what, file=place),)


def check_branch(uri: HubUri) -> None:
    """UsageError (exit 2) where a commit is named: nothing can be pushed to it."""
    if uri.pinned:
        message = "a commit cannot be pushed to; name a branch, or leave it out"
        raise UsageError(message, code=Code.USAGE, file=str(uri))


def target(api: HfApi, uri: HubUri, *, private: bool, create_pr: bool) -> Target:
    """The repository as it is, made where there is none.

    MismatchError (exit 4) where it must be private and is public; RemoteError (exit 6) otherwise.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    place = str(uri)
    check_branch(uri)
    if is_offline():
        message, hint = "cannot be written to: the Hub's client is offline", "unset HF_HUB_OFFLINE"
        raise RemoteError(message, code=Code.OFFLINE, file=place, hint=hint)
    try:
        seen = state(api, uri.repo, uri.revision, place)
    except RemoteError as error:
        if isinstance(error.__cause__, RevisionNotFoundError) and uri.revision is not None:
            error.hint = f"make it first: hf repos branch create {uri.repo} {uri.revision}"
            raise
        if error.code is not Code.NOT_FOUND or create_pr or uri.revision is not None:
            raise
        patiently(lambda: _create(api, uri, private=private), place)
        seen = state(api, uri.repo, uri.revision, place)
    if private and not seen.private:
        message = "the repository is public, and --private asks for a private one"
        hint = "make it private in its settings first, or leave --private out"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=place, hint=hint)
    origin = Origin(api, uri.repo, seen.commit, place)
    found = tree(api, uri.repo, seen.commit, place)
    return Target(origin, uri, {file.path: file for file in found}, create_pr)


def _create(api: HfApi, uri: HubUri, *, private: bool) -> None:
    with told(str(uri), writing=True):
        # None: what the organisation's settings say
        api.create_repo(uri.repo, private=private or None, exist_ok=True)


def refuse_mixture(goal: Target, names: Iterable[str]) -> None:
    """MismatchError (exit 4) where weights would stay there beside `names`, this push's files.

    Loaders would take them for a part of it, or in its stead.
    """
    ours = {goal.name(name) for name in names}
    folder = goal.uri.folder
    beside = [name for name in goal.files if name.rpartition("/")[0] == folder]
    old = [name for name in beside if name.endswith((WEIGHTS_SUFFIX, INDEX_SUFFIX))]
    stale = sorted(name for name in old if name not in ours)
    if stale:
        shown = ", ".join(map(printable, stale[:5]))
        message = f"the repository holds other weights, which would be mixed with these: {shown}"
        hint = "delete them there first, or push to another repository or folder"
        raise MismatchError(message, code=Code.STALE_WEIGHTS, file=goal.origin.place, hint=hint)


def push_files(goal: Target, files: Sequence[Outgoing], message: str, count: Count) -> Pushed:
    """Upload what is large, then commit everything at once on top of the commit that was seen.

    A response that is lost is made up for by looking at the branch again. IntegrityError (exit 9)
    where the commit does not hold what was sent.
    """
    with quiet(), Upload(goal) as upload:
        for file in files:
            upload.send(file)
            count(file.size)
        return upload.commit(message)


class Upload:
    """The files of one commit: large ones are sent as they come, all are named at the end.

    A `with` block closes what is open; without `commit` the branch is where it was.
    """

    __slots__ = ("_by_path", "_files", "_goal", "_open", "_operations")

    def __init__(self, goal: Target) -> None:
        self._goal = goal
        self._open = ExitStack()
        self._by_path: bool | None = None
        self._files: list[Outgoing] = []
        self._operations: list[CommitOperationAdd] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        self._open.close()

    def check_permission(self) -> None:
        """RemoteError (exit 6) where this token may not write there; sends nothing."""
        from huggingface_hub import CommitOperationAdd

        # The Hub is asked how a small text would be stored, which only writers may.
        asked = CommitOperationAdd(self._goal.name(CARD_FILE), b"---\n---\n")
        patiently(lambda: self._preupload(asked), self._goal.origin.place)

    def send(self, file: Outgoing) -> bool:
        """Upload the file if the Hub keeps such files in LFS; whether it may now be removed here.

        Where the server has its content already, nothing is sent.
        """
        with ExitStack() as opened:
            operation = self._operation(file, opened)
            self._preupload(operation)
            self._files.append(file)
            self._operations.append(operation)
            if operation.path_or_fileobj == b"":
                return True
            self._open.push(opened.pop_all())
            return False

    def add(self, file: Outgoing) -> None:
        """A file that stays where it is until `commit` sends it."""
        self._files.append(file)
        self._operations.append(self._operation(file, self._open))

    def commit(self, message: str) -> Pushed:
        """All files at once, on top of the commit that was seen; errors as `push_files`."""
        goal = self._goal
        pushed = _committed(goal, self._operations, self._files, message)
        if not _holds(goal, pushed.commit, self._files):
            what = f"commit {printable(pushed.commit)} does not hold what was sent"
            hint = "a file changed while it was pushed, or the server lost one: push again"
            raise IntegrityError(what, code=Code.INTEGRITY, file=goal.origin.place, hint=hint)
        return pushed

    def _operation(self, file: Outgoing, opened: ExitStack) -> CommitOperationAdd:
        from huggingface_hub import CommitOperationAdd

        if self._by_path is None:
            self._by_path = _speaks_xet(self._goal)
        # The client uploads open files by LFS, paths by Xet, and does not fall back by itself.
        body = _body(file, opened, by_path=self._by_path)
        return CommitOperationAdd(self._goal.name(file.name), body)

    def _preupload(self, operation: CommitOperationAdd) -> None:
        origin = self._goal.origin
        with told(origin.place, writing=True):
            # What was uploaded is let go: its body is then b"".
            origin.api.preupload_lfs_files(
                origin.repo,
                [operation],
                revision=self._goal.uri.revision,
                create_pr=self._goal.create_pr,
                free_memory=True,
            )


def _body(file: Outgoing, opened: ExitStack, *, by_path: bool) -> Path | bytes | BinaryIO:
    if by_path:
        return file.content
    if isinstance(file.content, bytes):
        return BytesIO(file.content)
    try:
        return opened.enter_context(file.content.open("rb"))
    except OSError as error:
        raise unreadable(error, file.content, printable(str(file.content))) from error


def _speaks_xet(goal: Target) -> bool:
    """Whether the server hands out tokens to write by Xet, and the client can use them.

    RemoteError (exit 6) where this token may not write.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    if constants.HF_HUB_DISABLE_XET:
        return False
    branch = goal.uri.revision or "main"
    root = f"{goal.origin.api.endpoint}/api/models/{goal.origin.repo}"
    url = f"{root}/xet-write-token/{branch.replace('/', '%2F')}"

    def ask() -> bool:
        headers = build_hf_headers(library_name="adaptool")
        parameters = {"create_pr": "1"} if goal.create_pr else None
        with told(goal.origin.place, writing=True):
            answer = get_session().get(url, headers=headers, params=parameters, timeout=60)
            if answer.status_code not in _NO_SUCH_ROUTE:
                hf_raise_for_status(answer)
        return answer.status_code not in _NO_SUCH_ROUTE

    return patiently(ask, goal.origin.place)


def _commit(goal: Target, operations: Sequence[CommitOperationAdd], message: str) -> Pushed:
    with told(goal.origin.place, writing=True):
        made = goal.origin.api.create_commit(
            goal.origin.repo,
            operations,
            commit_message=message,
            revision=goal.uri.revision,
            create_pr=goal.create_pr,
            parent_commit=None if goal.create_pr else goal.origin.commit,
        )
    # The client makes no commit that changes nothing, and names the one that is there.
    changed = made.pr_url is not None or made.oid != goal.origin.commit
    return Pushed(made.oid, made.pr_url or made.commit_url, changed)


def _committed(
    goal: Target, operations: Sequence[CommitOperationAdd], files: Sequence[Outgoing], message: str
) -> Pushed:
    """The commit, asked for again where the server had no time or the answer was lost.

    It builds on the commit that was seen, so asking twice makes one; a pull request has no such
    guard and is asked for again only where the server says that it did nothing.
    """
    failures = 0
    while True:
        try:
            return _commit(goal, operations, message)
        except RemoteError as error:
            made = None if goal.create_pr else _recognised(goal, files, error)
            if made is not None:
                return made
            again = error.code is Code.RATE_LIMITED
            if not again and (goal.create_pr or error.code is not Code.NETWORK):
                raise
            failures += 1
            wait_or_raise(error, failures)


def _recognised(goal: Target, files: Sequence[Outgoing], error: RemoteError) -> Pushed | None:
    """The commit that was made although its answer was lost; None where there is none."""
    if error.code not in {Code.NETWORK, Code.REMOTE_MOVED}:
        return None
    origin = goal.origin
    head = state(origin.api, origin.repo, goal.uri.revision, origin.place).commit
    if head == origin.commit or not _holds(goal, head, files):
        return None
    return Pushed(head, f"{origin.api.endpoint}/{origin.repo}/commit/{head}")


def _holds(goal: Target, commit: str, files: Sequence[Outgoing]) -> bool:
    """Whether every file stands in the commit, byte for byte."""
    origin = goal.origin
    found = {file.path: file for file in tree(origin.api, origin.repo, commit, origin.place)}
    return all(_same(file, found.get(goal.name(file.name))) for file in files)


def _same(ours: Outgoing, theirs: RemoteFile | None) -> bool:
    if theirs is None:
        return False
    return ours.sha256 == theirs.sha256 if theirs.sha256 else ours.oid == theirs.oid
