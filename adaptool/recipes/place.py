"""Where in a recipe something stands, for errors that name the line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from adaptool.errors import AdaptoolError, InputError
from adaptool.findings import Code


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a recipe, and the field that it is about (`steps.slim.resize.rank`)."""

    recipe: str
    line: int
    field: str = ""

    @property
    def file(self) -> str:
        """The recipe and the line, as compilers write it."""
        return f"{self.recipe}:{self.line}"

    def at(self, line: int, name: str = "") -> Self:
        """A place further in: field `name` of this one, on its own line."""
        field = f"{self.field}.{name}" if self.field and name else self.field or name
        return replace(self, line=line, field=field)

    def refusal(
        self,
        message: str,
        *,
        code: Code = Code.FIELD_VALUE,
        hint: str | None = None,
        kind: type[AdaptoolError] = InputError,
    ) -> AdaptoolError:
        """The error that says `message` of this place."""
        return kind(message, code=code, file=self.file, field=self.field or None, hint=hint)


def line_of(error: AdaptoolError) -> int:
    """The line that a refusal names: errors of a file are told from its top."""
    return int((error.file or "0").rpartition(":")[2])
