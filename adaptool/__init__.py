"""Parses, checks, merges, converts and packages adapters of neural networks.

    import adaptool

    adaptool.merge("base", "adapter", "merged", weight=0.8)

The verbs are those of the command line, their keyword options named like its flags. Names are
loaded on first use: `import adaptool` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adaptool.api import (
        Strength,
        combine,
        convert,
        diff,
        extract,
        inspect,
        merge,
        pull,
        push,
        resize,
        run,
        unmerge,
        validate,
        verify,
    )
    from adaptool.errors import (
        AdaptoolError,
        BusyError,
        CheckFailed,
        InputError,
        IntegrityError,
        InternalError,
        Interrupted,
        MismatchError,
        OutputError,
        RemoteError,
        ResourceError,
        UsageError,
    )

__version__ = "0.1.0"

__all__ = [
    "AdaptoolError",
    "BusyError",
    "CheckFailed",
    "InputError",
    "IntegrityError",
    "InternalError",
    "Interrupted",
    "MismatchError",
    "OutputError",
    "RemoteError",
    "ResourceError",
    "Strength",
    "UsageError",
    "__version__",
    "combine",
    "convert",
    "diff",
    "extract",
    "inspect",
    "merge",
    "pull",
    "push",
    "resize",
    "run",
    "unmerge",
    "validate",
    "verify",
]

_ERRORS = frozenset(name for name in __all__ if name[0].isupper()) - {"Strength"}


def __getattr__(name: str) -> object:
    """A public name, from the module that defines it."""
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module("adaptool.errors" if name in _ERRORS else "adaptool.api"), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
