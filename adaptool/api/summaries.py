"""What a command did, added to a Markdown file: the summary of a CI job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from adaptool.store.addresses import as_written
from adaptool.store.appending import append_text, check_appendable
from adaptool.store.disk import Disk

# A job's summary holds 1 MiB on GitHub; --json has them all.
MOST_ITEMS = 40


@dataclass(frozen=True, slots=True)
class JobSummary:
    """The file that --summary names; each command adds its section to the end."""

    file: Path
    disk: Disk

    @classmethod
    def at(cls, file: Path, disk: Disk | None = None) -> Self:
        """The summary in `file`; OutputError (exit 5) where nothing can be added to it."""
        used = disk or Disk()
        check_appendable(file, used)
        return cls(file, used)

    def add(self, command: str, given: Sequence[Path | str], body: Mapping[str, Any]) -> None:
        """The section of `command` on what it was given; `body` is its answer or its error.

        OutputError (exit 5) where it cannot be written.
        """
        from adaptool.pages.summary import run_summary, summary

        if "steps" in body:
            text = run_summary(body)
        else:
            paths = [as_written(each) if isinstance(each, Path) else each for each in given]
            text = summary(" ".join(["adaptool", command, *paths]), body)
            said = [item for item in body.get("items", ()) if item.get("findings")]
            sections = (summary(str(item.get("path", "")), item, level=4) for item in said)
            text += "".join(islice(sections, MOST_ITEMS))
        append_text(self.file, text, self.disk)
