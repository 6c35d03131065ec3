"""`adaptool run RECIPE.yaml`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options, values
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import byte_count, printable
from adaptool.model.run_results import RunResult, StepResult, StepStatus

if TYPE_CHECKING:
    from rich.console import RenderableType


def _assignment(text: str) -> tuple[str, str]:
    """`NAME=VALUE`; a value may hold further equals signs."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        message = f"{text!r} is not NAME=VALUE"
        raise click.BadParameter(message)
    return name, value


def _once_each(assignments: tuple[tuple[str, str], ...]) -> dict[str, str]:
    for name, count in Counter(name for name, _ in assignments).items():
        if count > 1:
            message = f"{name!r} is given {count} times"
            raise click.BadParameter(message, param_hint="'--set'")
    return dict(assignments)


def _print_schema(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from adaptool.api.recipe_verbs import RecipeSchema

        click.echo(RecipeSchema.shipped(), nl=False)
        context.exit()


@click.command("run", short_help="Do the steps of a recipe; skip what is done and unchanged.")
@click.argument("recipe", type=values.local_path, metavar="RECIPE.yaml")
@click.option(
    "--set",
    "assignments",
    type=_assignment,
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable that the recipe declares; repeatable.",
)
@click.option("--force", is_flag=True, help="Skip nothing.")
@options.writing
@options.machine
@options.output
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON schema of recipes, for editors, and leave.",
)
def command(recipe: Path, assignments: tuple[tuple[str, str], ...], **flags: Any) -> Answer:  # noqa: ANN401
    """Do the steps of RECIPE.yaml in their order, after the whole of it was checked.

    A step is skipped where the same was done before, and what it read and wrote is unchanged. The
    first step that fails ends the run with its own exit code.
    """
    from adaptool import api

    result = api.run(recipe, set=_once_each(assignments), watch=byte_bar, **flags)
    error = result.failed.error if result.failed else None
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        errors=() if error is None else (error, *error.others),
        exit=result.exit_code,
        asked=result.dry_run or not result.ok,
    )


def _people(result: RunResult) -> Iterator[RenderableType]:
    from adaptool.cli.rendering import table

    heads = ("step", "verb", "status", "seconds", "result")
    yield table(heads, (_row(step) for step in result.steps))
    counts = Counter(step.status for step in result.steps)
    told = ", ".join(f"{counts[status]} {status}" for status in StepStatus if counts[status])
    yield f"{'ok' if result.ok else 'not ok'}: {told}"


def _row(step: StepResult) -> tuple[object, ...]:
    return (step.name, step.verb, str(step.status), step.seconds, _told(step.result or {}))


def _told(body: Mapping[str, Any]) -> str | None:
    """Where it is and how large, or what a check found."""
    parts = [body[name] for name in ("out", "url") if body.get(name)]
    if isinstance(body.get("bytes"), int):
        parts.append(byte_count(body["bytes"]))
    if isinstance(body.get("ok"), bool):
        parts.append("ok" if body["ok"] else "not ok")
    if isinstance(body.get("equal"), bool):
        parts.append("equal" if body["equal"] else "different")
    return ", ".join(printable(str(part)) for part in parts) or None
