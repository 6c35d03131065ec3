"""Runs the real command line's `main` in this process: what a user gets, without the start-up."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from adaptool.cli.main import main
from command_line import Run


def ask(*arguments: str | Path) -> Run:
    """`adaptool ARGUMENTS`, with its exit code and what it wrote."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Run(code, out.getvalue(), err.getvalue())


def done(*arguments: str | Path) -> Run:
    """The same, for what must succeed."""
    answer = ask(*arguments)
    assert answer.code == 0, (answer.out, answer.err)
    return answer


def refused(code: int, *arguments: str | Path) -> dict[str, object]:
    """The error object of what must fail with this exit code, asked for as JSON."""
    answer = ask(*arguments, "--json")
    assert answer.code == code, (answer.out, answer.err)
    error: dict[str, object] = answer.json["error"]
    return error
