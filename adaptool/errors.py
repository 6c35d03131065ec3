"""The whole error tree.

    AdaptoolError
    ├── CheckFailed        1   a check said no
    ├── UsageError         2   the command line or an argument is wrong
    ├── InputError         3   an input is malformed, unsafe or contradicts itself
    ├── MismatchError      4   inputs are fine alone but do not fit, or it is unsupported
    ├── OutputError        5   the output or local I/O: exists, disk full, read-only
    ├── RemoteError        6   Hub, network, authentication
    ├── ResourceError      7   memory, device, limits
    ├── BusyError          8   another run holds the output
    ├── IntegrityError     9   a digest differs, or an input changed under us
    ├── InternalError     70   a bug of ours
    └── Interrupted    128+N   a signal

An error is one line that names file, tensor and field with the numbers; `hint` says what to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import ClassVar

from adaptool.findings import Code, Finding, Severity

MOST_ERRORS = 20
# Tokens of the Hub, the query of a signed address, credentials in a header or an address.
_SECRETS = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=\?)\S+|(?i:bearer)\s+\S+|(?<=://)[^\s/@]+(?=@)")
_SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class AdaptoolError(Exception):
    """Base of every error that adaptool raises on purpose."""

    exit: ClassVar[int] = 70

    def __init__(
        self,
        message: str,
        *,
        code: Code,
        file: str | None = None,
        tensor: str | None = None,
        field: str | None = None,
        hint: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.file = file
        self.tensor = tensor
        self.field = field
        self.hint = hint
        self.retryable = retryable
        self.others: tuple[AdaptoolError, ...] = ()

    def __str__(self) -> str:
        """The one line: where, then what."""
        where = [part for part in (self.file, self.tensor, self.field) if part is not None]
        return ": ".join([*where, self.message])

    @property
    def exit_code(self) -> int:
        """What the process exits with."""
        return self.exit

    def as_json(self) -> dict[str, object]:
        """The error as the object that `--json` prints."""
        return {
            "code": str(self.code),
            "exit": self.exit_code,
            "file": self.file,
            "tensor": self.tensor,
            "field": self.field,
            "message": self.message,
            "hint": self.hint,
            "retryable": self.retryable,
        }

    def as_finding(self) -> Finding:
        """The error as `validate` reports it."""
        return Finding(
            code=self.code,
            severity=Severity.ERROR,
            message=self.message,
            file=self.file,
            tensor=self.tensor,
            field=self.field,
            hint=self.hint,
        )


class CheckFailed(AdaptoolError):
    """A check said no."""

    exit = 1


class UsageError(AdaptoolError):
    """The command line or an argument is wrong."""

    exit = 2


class InputError(AdaptoolError):
    """An input is malformed, unsafe or contradicts itself."""

    exit = 3


class MismatchError(AdaptoolError):
    """Inputs are fine alone but do not fit each other, or the operation is unsupported."""

    exit = 4


class OutputError(AdaptoolError):
    """The output or local I/O: it exists, the disk is full, it is read-only."""

    exit = 5


class RemoteError(AdaptoolError):
    """The Hub, the network or authentication."""

    exit = 6


class ResourceError(AdaptoolError):
    """Memory, device or a limit."""

    exit = 7


class BusyError(AdaptoolError):
    """Another run holds the output."""

    exit = 8


class IntegrityError(AdaptoolError):
    """A digest differs, or an input changed while it was read."""

    exit = 9


class InternalError(AdaptoolError):
    """A bug of ours."""

    exit = 70


class Interrupted(AdaptoolError):
    """A signal ended the run; `signal` is its number."""

    def __init__(self, signal: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, code=Code.INTERRUPTED, hint=hint, retryable=True)
        self.signal = signal

    @property
    def exit_code(self) -> int:
        """128 + N, as shells report a signal."""
        return 128 + self.signal


def gathered(errors: Sequence[AdaptoolError]) -> AdaptoolError:
    """The first of several errors, carrying the others (at most 20 in all) for the report.

    What several say word for word is said once: it has one cause.
    """
    every: dict[tuple[str, Code, str | None], AdaptoolError] = {}
    for error in errors:
        every.setdefault((str(error), error.code, error.hint), error)
    first, *others = every.values()
    first.others = tuple(others[: MOST_ERRORS - 1])
    return first


def without_secrets(text: str) -> str:
    """`text` without access tokens, signed addresses and credentials: what may be shown."""
    for name in _SECRET_VARIABLES:  # a Hub of one's own may have other tokens
        value = os.environ.get(name, "").strip()
        if len(value) >= 8:
            text = text.replace(value, "***")
    return _SECRETS.sub("***", text)
