"""What an `hf://` address means now: a commit, and the files of the artifact in it."""

from __future__ import annotations

from dataclasses import dataclass

from adaptool.remote.hub import Origin, client, state, tree
from adaptool.remote.selection import Wanted, selected
from adaptool.remote.uri import HubUri


@dataclass(frozen=True, slots=True)
class Survey:
    """An artifact on the Hub, as one commit has it; nothing of it is downloaded yet."""

    uri: HubUri
    origin: Origin
    wanted: tuple[Wanted, ...]


def survey(uri: HubUri, *, allow_pickle: bool) -> Survey:
    """Ask for the commit that is meant and for its files; errors as `state` and `selected`."""
    api, place = client(), str(uri)
    commit = state(api, uri.repo, uri.revision, place).commit
    files = tree(api, uri.repo, commit, place)
    origin = Origin(api, uri.repo, commit, place)
    return Survey(uri, origin, selected(uri, files, allow_pickle=allow_pickle))
