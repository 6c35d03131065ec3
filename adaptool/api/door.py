"""How inputs come in: from the Hub, pickles only where they are allowed, all closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from adaptool.errors import AdaptoolError
from adaptool.findings import Finding
from adaptool.remote.uri import HubUri
from adaptool.store.adapter_files import CONFIG_FILE as ADAPTER_CONFIG
from adaptool.store.addresses import hub_uri
from adaptool.store.disk import Disk
from adaptool.store.local import LocalSource
from adaptool.store.passing import passing_directory
from adaptool.store.pickle_door import plain_form
from adaptool.store.safe_names import printable
from adaptool.store.source import Source

Progress = Callable[[int, int], None]
Text = TypeVar("Text", str, str | None)


@dataclass(frozen=True, slots=True)
class Door:
    """Through which inputs come: pickles only where they are allowed, closed with `stack`.

    What lies on the Hub, and what pickles hold, is put into directories that pass. Errors that
    leave through `stack` name what the user wrote instead, and `named` does that for findings.
    """

    stack: ExitStack
    allow_pickle: bool
    _addresses: dict[str, str] = field(default_factory=dict, repr=False)
    _weights: dict[Path, Callable[[], Source]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.stack.push(self._name_error)

    def path(self, path: Path) -> Path:
        """The path to open: what was pulled, a pickle's safetensors form, or the path itself."""
        uri = hub_uri(path)
        here = path if uri is None else self._pulled(uri)
        if not self.allow_pickle:
            return here
        plain = plain_form(here, self.stack)
        for made, given in plain.stands_for.items():
            self._addresses[printable(str(made))] = self._told(printable(str(given)))
        return plain.path

    def headers(self, path: Path) -> Path:
        """The path to open, with `source`, for headers and small values: no weights are pulled."""
        return self._mirrored(path, None) or self.path(path)

    def streamed(self, path: Path, disk: Disk) -> Path:
        """The path to open, with `source`, for a base that is read once and in its order.

        Its weights files come one by one when the engine asks for them.
        """
        return self._mirrored(path, disk) or self.path(path)

    def source(self, path: Path) -> Source:
        """The weights file at `path`, or what it stands for."""
        elsewhere = self._weights.get(path)
        return LocalSource(path) if elsewhere is None else elsewhere()

    def named(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """The findings with addresses where they name what lies here for a while."""
        return tuple(
            replace(
                each,
                message=self._told(each.message),
                file=self._told(each.file),
                hint=self._told(each.hint),
            )
            for each in findings
        )

    def _mirrored(self, path: Path, disk: Disk | None) -> Path | None:
        """A mirror of what `path` addresses, None where there is none."""
        uri = hub_uri(path)
        if uri is None or self.allow_pickle:
            return None
        from adaptool.api.mirroring import Mirror

        place = HubUri.parse(uri)
        found = Mirror.of(place, self.stack, disk or Disk(), streamed=disk is not None)
        if found is None:
            return None
        self._weights.update(found.weights)
        names = [here.name for here in found.weights]
        return self._addressed(found.root, uri, names)

    def _pulled(self, uri: str) -> Path:
        """A passing copy of what lies at `uri`; its name is the repository's, or the folder's."""
        from adaptool.api.hub import pull

        place = HubUri.parse(uri)
        out = passing_directory(self.stack, place.name)
        result = pull(uri, out, allow_pickle=self.allow_pickle)
        names = [file.name for file in result.files if file.name != ADAPTER_CONFIG]
        return self._addressed(out, uri, names)

    def _addressed(self, root: Path, uri: str, names: list[str]) -> Path:
        """What to open of a passing directory: its one file where that is what `uri` names."""
        self._addresses[printable(str(root))] = uri
        if names != [root.name]:
            return root
        self._addresses[printable(str(root / root.name))] = uri
        return root / root.name

    def _told(self, text: Text) -> Text:
        """`text` with what the user wrote for the directories that pass."""
        told = text
        for here, uri in sorted(self._addresses.items(), key=lambda item: -len(item[0])):
            told = told and told.replace(here, uri)
        return told

    def _name_error(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind, trace
        if not isinstance(error, AdaptoolError):
            return
        for each in (error, *error.others):
            each.message = self._told(each.message)
            each.file = self._told(each.file)
            each.hint = self._told(each.hint)
