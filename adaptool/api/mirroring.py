"""Artifacts on the Hub that are read without being downloaded, or while they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from adaptool.model.hub_results import pulled_receipt
from adaptool.model.receipt import OutputEntry
from adaptool.remote.hub import quiet
from adaptool.remote.mirror import Rooms, can_be_mirrored, check_room, mirrored
from adaptool.remote.survey import Survey, survey
from adaptool.remote.uri import HubUri
from adaptool.store.disk import Disk
from adaptool.store.documents import encode_json
from adaptool.store.own_files import RECEIPT
from adaptool.store.passing import passing_directory, put_document
from adaptool.store.source import Source


@dataclass(frozen=True, slots=True)
class Mirror:
    """A directory that stands for an artifact on the Hub, and how its weights are opened."""

    root: Path
    weights: Mapping[Path, Callable[[], Source]]

    @classmethod
    def of(cls, uri: HubUri, stack: ExitStack, disk: Disk, *, streamed: bool) -> Self | None:
        """What lies at `uri`, removed with `stack`; None where it can only be pulled whole.

        Headers are read. `streamed` also brings the documents and sees that two of the weights
        files find room: they arrive one by one. Errors as in `survey` and `mirrored`.
        """
        stack.enter_context(quiet())
        found = survey(uri, allow_pickle=False)
        if not can_be_mirrored(found):
            return None
        rooms = Rooms(passing_directory(stack, uri.name), passing_directory(stack, "arrivals"))
        if streamed:
            check_room(found, disk)
        weights = mirrored(found, rooms, disk, streamed=streamed)
        put_document(disk, rooms.mirror / RECEIPT, encode_json(_receipt(found)))
        return cls(rooms.mirror, weights)


def _receipt(found: Survey) -> dict[str, object]:
    """What a pull would have written: who reads the directory learns the commit from it."""
    files = tuple(
        OutputEntry(each.name, each.file.size, each.file.sha256)
        for each in found.wanted
        if each.name != RECEIPT
    )
    return pulled_receipt(str(found.uri), found.origin.repo, found.origin.commit, files, None)
