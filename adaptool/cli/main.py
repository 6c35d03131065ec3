"""`adaptool`: finds the command, runs it, prints its answer, ends with its exit code."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module

import click

import adaptool
from adaptool.cli import commands
from adaptool.cli.answer import Answer
from adaptool.cli.boundary import emit, guarded, print_errors
from adaptool.cli.options import is_json, is_quiet
from adaptool.cli.signals import stopped_cleanly
from adaptool.cli.summaries import summarized
from adaptool.cli.text import json_text
from adaptool.errors import UsageError

COMPLETE = "_ADAPTOOL_COMPLETE"


class CommandFolder(click.Group):
    """A group whose commands are the files of `adaptool/cli/commands`, imported when named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Every file there is a command."""
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command `cmd_name`, None where there is no such file."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = import_module(f"{commands.__name__}.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but that a mistyped command gets the nearest one named."""
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            near = difflib.get_close_matches(args[0], known, n=1)
            also = f"; did you mean {near[0]}?" if near else ""
            message = f"no such command: {args[0]!r}{also}"
            raise click.UsageError(message, ctx)
        return super().resolve_command(ctx, args)


group = CommandFolder(
    name="adaptool",
    help="Merge, check and package adapters of neural networks (LoRA and its relatives).\n\n"
    "Adapters and models are paths, or hf://OWNER/NAME[@REVISION][/FOLDER]; OUT may be "
    "hf://OWNER/NAME.",
    epilog="Exit codes: 0 done, 1 a check said no, 2 usage, 3 malformed input, 4 does not fit or "
    "unsupported, 5 output, 6 network, 7 resources, 8 busy, 9 integrity, 70 a bug of adaptool.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
click.version_option(adaptool.__version__, message="%(prog)s %(version)s")(group)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if COMPLETE in os.environ:
        # A shell asks for completions: click answers and leaves.
        group.main(arguments, prog_name="adaptool")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name the terminal cannot show is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    with stopped_cleanly():
        return guarded(lambda: _run(arguments), as_json=_wants_json(arguments))


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether an error found while parsing is told as JSON: the flag is not parsed yet then."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return "--json" in arguments[:end]


def _run(arguments: list[str]) -> int:
    if not arguments:
        click.echo(group.get_help(click.Context(group, info_name="adaptool")), err=True)
        return UsageError.exit
    aside = io.StringIO()
    try:
        # stdout is for the answer alone: what click or a library prints does not get there.
        with (
            contextlib.redirect_stdout(aside),
            group.make_context("adaptool", arguments) as context,
        ):
            answer = summarized(context, lambda: group.invoke(context))
            as_json, quiet = is_json(context), is_quiet(context)
    except click.exceptions.Exit as left:
        # --help and --version say what they have to say and leave.
        emit(aside.getvalue())
        return left.exit_code
    _show(answer, as_json=as_json, quiet=quiet)
    return answer.exit


def _show(answer: Answer, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        emit(json_text(answer.body) + "\n")
    elif answer.asked or not quiet:
        from adaptool.cli.rendering import rendered

        emit(rendered(answer.people()))
    if answer.findings and not (as_json or quiet):
        from adaptool.cli.rendering import show_findings

        show_findings(answer.findings)
    if answer.errors and not as_json:
        print_errors(answer.errors)
