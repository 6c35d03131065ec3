"""The YAML of a recipe as a tree of texts with their lines; nothing is constructed from it.

Only the parser's events are read, so that no tag can make an object. What lets a small file mean
something large or something else is refused: anchors and aliases, tags, several documents, keys
that stand twice. Scalars stay text: what takes the value says whether `8` is a number or a name
(so `no` and `1e3` are what they look like, not what YAML 1.1 makes of them).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool.errors import InputError
from adaptool.findings import Code
from adaptool.recipes.place import Place
from adaptool.store.documents import read_document
from adaptool.store.safe_names import printable

if TYPE_CHECKING:
    import yaml

LARGEST_RECIPE = 1024 * 1024
MOST_DEPTH = 16
_NO_VALUE = frozenset({"", "~", "null"})


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text; `plain` where no quotes stand around it."""

    text: str
    plain: bool
    line: int

    @property
    def empty(self) -> bool:
        """Whether it stands for no value at all."""
        return self.plain and self.text in _NO_VALUE


@dataclass(frozen=True, slots=True)
class Listed:
    """A sequence."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapping; its keys are texts, in the order of the file."""

    items: Mapping[str, Node]
    line: int


Node = Scalar | Listed | Mapped


def read_yaml(path: Path) -> Node:
    """The one document in the file at `path`; InputError, with the line, for what is none."""
    raw = read_document(path, limit_bytes=LARGEST_RECIPE, what="recipe", too_large=InputError)
    return parse_yaml(raw, printable(str(path)))


def parse_yaml(raw: bytes, file: str) -> Node:
    """The one document in `raw`; `file` is what messages call it."""
    import yaml

    try:
        return _Parser(file, yaml.parse(_text(raw, file), Loader=yaml.SafeLoader)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1 if mark else 1)
        raise _invalid(place, str(error.problem or error.context)) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Escapes and directives with numbers that are none leave the parser as they are.
        raise _invalid(Place(file, 1), " ".join(str(error).split())) from error


def _text(raw: bytes, file: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _invalid(Place(file, line), f"byte 0x{raw[error.start]:02x} is not UTF-8") from error


def _invalid(place: Place, why: str) -> Exception:
    message = f"is not valid YAML: {printable(why, most=200)}"
    return place.refusal(message, code=Code.YAML_INVALID)


@dataclass(frozen=True, slots=True)
class _Parser:
    """Builds the tree from the parser's events."""

    file: str
    events: Iterator[yaml.Event]

    def document(self) -> Node:
        """The only document; an empty file is an empty text."""
        from yaml import events

        tree: Node | None = None
        for event in self.events:
            if isinstance(event, events.DocumentStartEvent):
                if tree is not None:
                    raise self._refused(event, "a second document begins")
                tree = self._node(next(self.events), 0)
        return tree or Scalar("", plain=True, line=1)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        from yaml import events

        self._check(event, depth)
        line = _line(event)
        if isinstance(event, events.ScalarEvent):
            return self._scalar(event, line)
        if isinstance(event, events.SequenceStartEvent):
            return Listed(tuple(self._items(depth)), line)
        return Mapped(self._pairs(depth), line)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Scalar:
        text: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self._refused(event, "half of a surrogate pair is no character")
        return Scalar(text, event.style is None, line)

    def _items(self, depth: int) -> Iterator[Node]:
        from yaml import events

        for event in self.events:
            if isinstance(event, events.SequenceEndEvent):
                return
            yield self._node(event, depth + 1)

    def _pairs(self, depth: int) -> Mapping[str, Node]:
        from yaml import events

        found: dict[str, Node] = {}
        for event in self.events:
            if isinstance(event, events.MappingEndEvent):
                break
            key = self._node(event, depth + 1)
            if not isinstance(key, Scalar):
                raise self._refused(event, "a key must be a word")
            if key.text in found:
                message = f"{printable(key.text, most=80)!r} is defined twice"
                raise Place(self.file, key.line).refusal(message, code=Code.DUPLICATE_KEY)
            found[key.text] = self._node(next(self.events), depth + 1)
        return found

    def _check(self, event: yaml.Event, depth: int) -> None:
        from yaml import events

        if depth > MOST_DEPTH:
            raise self._refused(event, f"nested more than {MOST_DEPTH} levels deep")
        if isinstance(event, events.AliasEvent) or getattr(event, "anchor", None):
            raise self._refused(event, "anchors and aliases are not read; use variables")
        if getattr(event, "tag", None):
            raise self._refused(event, "tags are not read")

    def _refused(self, event: yaml.Event, why: str) -> Exception:
        return _invalid(Place(self.file, _line(event)), why)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
