"""One atomic commit: large files first, one by one, then all names at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from adaptool.errors import IntegrityError, MismatchError, RemoteError, UsageError
from adaptool.findings import Code
from adaptool.remote.failures import told
from adaptool.remote.hub import Origin, RemoteFile, patiently, quiet, state, tree
from adaptool.remote.outgoing import Outgoing
from adaptool.remote.uri import HubUri
from adaptool.store.safe_names import printable
from adaptool.store.weight_files import INDEX_SUFFIX, WEIGHTS_SUFFIX

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

Count = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a push goes: the repository and branch, and the commit that it builds on."""

    origin: Origin
    uri: HubUri
    files: Mapping[str, RemoteFile]
    create_pr: bool

    def name(self, file: Outgoing) -> str:
        """The file's path in the repository."""
        return f"{self.uri.folder}/{file.name}" if self.uri.folder else file.name


@dataclass(frozen=True, slots=True)
class Pushed:
    """The commit that was made, or the one that held everything already; where to look at it."""

    commit: str
    url: str


def target(api: HfApi, uri: HubUri, *, private: bool, create_pr: bool) -> Target:
    """The repository as it is, made where there is none.

    MismatchError (exit 4) where it must be private and is public; RemoteError (exit 6) otherwise.
    """
    place = str(uri)
    if uri.pinned:
        message = "a commit cannot be pushed to; name a branch, or leave it out"
        raise UsageError(message, code=Code.USAGE, file=place)
    try:
        seen = state(api, uri.repo, uri.revision, place)
    except RemoteError as error:
        if error.code is not Code.NOT_FOUND or create_pr or uri.revision is not None:
            raise
        with told(place, writing=True), quiet():
            # None: what the organisation's settings say
            api.create_repo(uri.repo, private=private or None, exist_ok=True)
        seen = state(api, uri.repo, uri.revision, place)
    if private and not seen.private:
        message = "the repository is public, and --private asks for a private one"
        hint = "make it private in its settings first, or leave --private out"
        raise MismatchError(message, code=Code.UNSUPPORTED, file=place, hint=hint)
    origin = Origin(api, uri.repo, seen.commit, place)
    found = tree(api, uri.repo, seen.commit, place)
    return Target(origin, uri, {file.path: file for file in found}, create_pr)


def refuse_mixture(goal: Target, files: Sequence[Outgoing]) -> None:
    """MismatchError (exit 4) where weights would stay there that are not of this push.

    Loaders would take them for a part of it, or in its stead.
    """
    ours = {goal.name(file) for file in files}
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
    with ExitStack() as stack, quiet():
        operations = _operations(goal, files, stack)
        for operation, file in zip(operations, files, strict=True):
            _upload(goal, operation)
            count(file.size)
        try:
            pushed = _commit(goal, operations, message)
        except RemoteError as error:
            if goal.create_pr or error.code is not Code.NETWORK:
                raise
            pushed = _recognised(goal, files, error)
    if not _holds(goal, pushed.commit, files):
        what = f"commit {printable(pushed.commit)} does not hold what was sent"
        hint = "a file changed while it was pushed, or the server lost one: push again"
        raise IntegrityError(what, code=Code.INTEGRITY, file=goal.origin.place, hint=hint)
    return pushed


def _operations(
    goal: Target, files: Sequence[Outgoing], stack: ExitStack
) -> list[CommitOperationAdd]:
    from huggingface_hub import CommitOperationAdd

    # The client uploads open files by LFS, paths by Xet, and does not fall back by itself.
    by_path = _speaks_xet(goal)
    return [
        CommitOperationAdd(goal.name(file), _body(file, stack, by_path=by_path)) for file in files
    ]


def _body(file: Outgoing, stack: ExitStack, *, by_path: bool) -> Path | bytes | BinaryIO:
    if isinstance(file.content, bytes) or by_path:
        return file.content
    return stack.enter_context(file.content.open("rb"))


def _speaks_xet(goal: Target) -> bool:
    """Whether the server hands out tokens to write by Xet."""
    from huggingface_hub.utils import build_hf_headers, get_session

    branch = goal.uri.revision or "main"
    root = f"{goal.origin.api.endpoint}/api/models/{goal.origin.repo}"
    url = f"{root}/xet-write-token/{branch.replace('/', '%2F')}"

    def ask() -> bool:
        headers = build_hf_headers(library_name="adaptool")
        parameters = {"create_pr": "1"} if goal.create_pr else None
        answer = get_session().get(url, headers=headers, params=parameters, timeout=60)
        return answer.status_code == 200

    return patiently(ask, goal.origin.place)


def _upload(goal: Target, operation: CommitOperationAdd) -> None:
    with told(goal.origin.place, writing=True):
        goal.origin.api.preupload_lfs_files(
            goal.origin.repo,
            [operation],
            revision=goal.uri.revision,
            create_pr=goal.create_pr,
            free_memory=False,
        )


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
    return Pushed(made.oid, made.pr_url or made.commit_url)


def _recognised(goal: Target, files: Sequence[Outgoing], error: RemoteError) -> Pushed:
    """The commit whose response was lost; the error itself where there is none."""
    origin = goal.origin
    head = state(origin.api, origin.repo, goal.uri.revision, origin.place).commit
    if head == origin.commit or not _holds(goal, head, files):
        raise error
    return Pushed(head, f"{origin.api.endpoint}/{origin.repo}/commit/{head}")


def _holds(goal: Target, commit: str, files: Sequence[Outgoing]) -> bool:
    """Whether every file stands in the commit, byte for byte."""
    origin = goal.origin
    found = {file.path: file for file in tree(origin.api, origin.repo, commit, origin.place)}
    return all(_same(file, found.get(goal.name(file))) for file in files)


def _same(ours: Outgoing, theirs: RemoteFile | None) -> bool:
    if theirs is None:
        return False
    return ours.sha256 == theirs.sha256 if theirs.sha256 else ours.oid == theirs.oid
