"""Where every error ends: one line, a hint and an exit code; never a traceback unasked."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import click

from adaptool.cli.signals import interruption
from adaptool.cli.text import json_text
from adaptool.errors import (
    MOST_ERRORS,
    AdaptoolError,
    InternalError,
    OutputError,
    ResourceError,
    UsageError,
    without_secrets,
)
from adaptool.findings import Code

BROKEN_PIPE = 128 + signal.SIGPIPE


def guarded(work: Callable[[], int], *, as_json: bool) -> int:
    """The exit code of `work`, or that of the error it ended in, which is told."""
    try:
        return _outcome(work, as_json=as_json)
    except BrokenPipeError:
        # The reader left (`| head`): nothing is wrong, and nobody is there to be told.
        _let_go(sys.stdout)
        _let_go(sys.stderr)
        return BROKEN_PIPE


def _outcome(work: Callable[[], int], *, as_json: bool) -> int:
    try:
        return work()
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place they all end
        if os.environ.get("ADAPTOOL_DEBUG") == "1":
            _print_traceback()
        told = translated(error)
        _tell(told, as_json=as_json)
        return told.exit_code


def _print_traceback() -> None:
    """What a client of the network says of its requests may hold a token."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(without_secrets(traceback.format_exc()))


def translated(error: BaseException) -> AdaptoolError:
    """Any exception as one of ours."""
    if isinstance(error, AdaptoolError):
        return error
    if isinstance(error, click.ClickException):
        message = " ".join(error.format_message().split())
        return UsageError(message, code=Code.USAGE, hint=_usage_hint(error))
    if isinstance(error, KeyboardInterrupt):
        return interruption(next(iter(error.args), signal.SIGINT))
    if isinstance(error, MemoryError):
        hint = "use fewer --threads, or a machine with more memory"
        return ResourceError("memory ran out", code=Code.OUT_OF_MEMORY, hint=hint)
    message = f"unexpected {type(error).__name__}: {without_secrets(str(error))}"
    hint = "this is a bug of adaptool; set ADAPTOOL_DEBUG=1 for the traceback"
    return InternalError(message, code=Code.INTERNAL, hint=hint)


def _usage_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{context.command_path if context else 'adaptool'} --help lists what can be given"


def _tell(error: AdaptoolError, *, as_json: bool) -> None:
    if as_json:
        with contextlib.suppress(OutputError):
            emit(json_text(error_body(error)) + "\n")
            return
    # stderr may be a full disk, too; the exit code still says it.
    with contextlib.suppress(OSError):
        print_errors(_all(error))


def error_body(error: AdaptoolError) -> dict[str, Any]:
    """The object that scripts get in place of an answer."""
    return {"error": error.as_json(), "errors": [each.as_json() for each in _all(error)]}


def _all(error: AdaptoolError) -> list[AdaptoolError]:
    return [error, *error.others][:MOST_ERRORS]


def print_errors(errors: Iterable[AdaptoolError]) -> None:
    """Each with its hint, on stderr."""
    from adaptool.cli.rendering import console, error_lines

    screen = console(stderr=True)
    for error in errors:
        for text in error_lines(str(error), error.hint):
            screen.print(text)


def emit(text: str) -> None:
    """Write `text` to stdout, the only door to it; OutputError where that fails."""
    if not text:
        return
    if sys.stdout is None:
        raise _unwritten(OSError(errno.EBADF, os.strerror(errno.EBADF)))
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _let_go(sys.stdout)
        raise _unwritten(error) from None


def _unwritten(error: OSError) -> OutputError:
    message = f"could not be written: {error.strerror}"
    hint = "the command itself may be done: see what stands at OUT"
    return OutputError(message, code=Code.WRITE_FAILED, file="standard output", hint=hint)


def _let_go(stream: TextIO | None) -> None:
    # What is still buffered would fail once more when the interpreter ends, with a message.
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
