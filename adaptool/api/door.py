"""How inputs come in: from the Hub, pickles only where they are allowed, all closed at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from adaptool.remote.uri import HubUri, hub_uri
from adaptool.store.passing import passing_directory
from adaptool.store.pickle_door import plain_path

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Door:
    """Through which inputs come: pickles only where they are allowed, closed with `stack`."""

    stack: ExitStack
    allow_pickle: bool

    def path(self, path: Path) -> Path:
        """The path to open: what was pulled, a pickle's safetensors form, or the path itself."""
        uri = hub_uri(path)
        here = path if uri is None else self._pulled(uri)
        return plain_path(here, self.stack) if self.allow_pickle else here

    def _pulled(self, uri: str) -> Path:
        """A passing copy of what lies at `uri`; its name is the repository's, or the folder's."""
        from adaptool.api.hub import pull

        place = HubUri.parse(uri)
        name = (place.folder or place.repo).rpartition("/")[2]
        out = passing_directory(self.stack, name)
        result = pull(uri, out, allow_pickle=self.allow_pickle)
        return out / name if [file.name for file in result.files] == [name] else out
