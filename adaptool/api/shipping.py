"""An artifact on this disk on its way to the Hub: checked, with its card, in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from adaptool.api.cards import Described
from adaptool.api.door import Progress
from adaptool.errors import InputError, gathered
from adaptool.findings import Finding, Severity
from adaptool.ops.validate import validate_path
from adaptool.remote.card import Facts, completed
from adaptool.remote.download import fetch_document
from adaptool.remote.outgoing import Outgoing, outgoing
from adaptool.remote.upload import Pushed, Target, push_files
from adaptool.remote.uri import HubUri
from adaptool.store.documents import read_document
from adaptool.store.model_card import CARD_FILE

_LARGEST_CARD = 4 << 20


@dataclass(frozen=True, slots=True)
class Card:
    """The text of a card that there is, None where there is none, and how it is completed.

    `file` is what errors call it.
    """

    text: str | None
    file: str = CARD_FILE

    @classmethod
    def beside(cls, files: Sequence[Outgoing]) -> Self:
        """The card among local files."""
        for file in files:
            if file.name == CARD_FILE and isinstance(file.content, Path):
                raw = read_document(file.content, limit_bytes=_LARGEST_CARD, what="card")
                return cls(raw.decode("utf-8", errors="replace"))
        return cls(None)

    @classmethod
    def there(cls, goal: Target) -> Self:
        """The card that stands in the repository."""
        theirs = goal.files.get(CARD_FILE)
        if theirs is None:
            return cls(None)
        raw = fetch_document(goal.origin, theirs, limit_bytes=_LARGEST_CARD)
        return cls(raw.decode("utf-8", errors="replace"), goal.origin.file(CARD_FILE))

    def check(self) -> None:
        """InputError (exit 3) for front matter that the Hub would refuse."""
        completed(self.text, Facts({}, "", ()), self.file)

    def told(self, facts: Facts) -> str:
        """The text with what it lacks."""
        return completed(self.text, facts, self.file)


@dataclass(frozen=True, slots=True)
class Shipment:
    """The files of an artifact, what there is to remark, and what its card says."""

    files: tuple[Outgoing, ...]
    findings: tuple[Finding, ...]
    facts: Facts

    @classmethod
    def of(cls, root: Path, place: HubUri) -> Self:
        """The artifact at `root`, a directory or one file, for the repository of `place`.

        InputError (exit 3) for what `validate` calls an error, for pickles, access tokens, stray
        files and a card that the Hub would refuse. The network is not touched.
        """
        findings = _validated(root)
        files = outgoing(root)
        facts = Described.at(root).facts(place.repo)
        Card.beside(files).check()
        return cls(files, findings, facts)

    def carded(self, card: Card) -> Self:
        """The same with a card: its own, else what is made of `card`."""
        own = Card.beside(self.files)
        text = (card if own.text is None else own).told(self.facts)
        others = [file for file in self.files if file.name != CARD_FILE]
        files = [*others, Outgoing.made(CARD_FILE, text.encode())]
        return replace(self, files=tuple(sorted(files, key=lambda file: file.name)))

    def send(self, goal: Target, message: str, progress: Progress | None) -> Pushed:
        """All files in one commit."""
        total = sum(file.size for file in self.files)
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            if progress is not None:
                progress(done, total)

        return push_files(goal, self.files, message, count)


def _validated(root: Path) -> tuple[Finding, ...]:
    """What there is to remark; an error among it is raised."""
    findings = validate_path(root, base=None, values=None)
    errors = [
        InputError(
            each.message,
            code=each.code,
            file=each.file,
            tensor=each.tensor,
            field=each.field,
            hint=each.hint,
        )
        for each in findings
        if each.severity is Severity.ERROR
    ]
    if errors:
        raise gathered(errors)
    return findings
