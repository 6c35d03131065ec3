"""How inputs come in: pickles only where they are allowed, everything closed at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from adaptool.store.pickle_door import plain_path

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Door:
    """Through which inputs come: pickles only where they are allowed, closed with `stack`."""

    stack: ExitStack
    allow_pickle: bool

    def path(self, path: Path) -> Path:
        """The path to open: a pickle's safetensors form, or the path itself."""
        return plain_path(path, self.stack) if self.allow_pickle else path
