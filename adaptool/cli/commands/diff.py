"""`adaptool diff A B`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import counted, printable
from adaptool.cli.values import artifact
from adaptool.errors import CheckFailed
from adaptool.model.comparisons import DiffResult, DiffRow

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 30
LONGEST_VALUE = 60


@click.command("diff", short_help="Compare two adapters or checkpoints.")
@click.argument("a", type=artifact)
@click.argument("b", type=artifact)
@click.option("--exit-code", is_flag=True, help="Exit 1 where any number differs.")
@click.option(
    "--base",
    type=artifact,
    metavar="BASE",
    help="For adapters whose file says too little: the base's names and head counts.",
)
@options.adapters_reading
@options.machine
@options.output
def command(a: Path, b: Path, *, exit_code: bool, **flags: Any) -> Answer:  # noqa: ANN401
    """Show how A and B differ: cosine and |A - B| / |A| of every module, and what only one has.

    Adapters may differ in rank, scaling and layout: what their factors make is compared.
    Checkpoints may differ in dtype and in how they are quantized.
    """
    from adaptool import api

    with byte_bar("diff") as progress:
        result = api.diff(a, b, progress=progress, **flags)
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        exit=CheckFailed.exit if exit_code and not result.equal else 0,
    )


def _people(result: DiffResult) -> Iterator[RenderableType]:
    different = sorted(
        (row for row in result.modules if row.relative_error != 0), key=_most_different_first
    )
    if different:
        from adaptool.cli.rendering import table

        yield table(
            ("module", "compared", "cosine", "relative error"),
            (
                (row.module, row.kind, row.cosine, row.relative_error)
                for row in different[:MOST_ROWS]
            ),
        )
        if len(different) > MOST_ROWS:
            yield f"and {len(different) - MOST_ROWS} more: --json lists them all"
    yield from _only("a", result.only_in_a)
    yield from _only("b", result.only_in_b)
    for row in result.structure:
        yield f"{printable(row.field)}: {_value(row.a)} in a, {_value(row.b)} in b"
    yield _summary(result, len(different))


def _most_different_first(row: DiffRow) -> tuple[bool, float]:
    return row.relative_error is not None, -(row.relative_error or 0.0)


def _only(side: str, names: Sequence[str]) -> Iterator[RenderableType]:
    for name in names[:MOST_ROWS]:
        yield f"only in {side}: {printable(name)}"
    if len(names) > MOST_ROWS:
        yield f"only in {side}: {len(names) - MOST_ROWS} more"


def _value(value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = "nothing" if value is None else printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _summary(result: DiffResult, different: int) -> str:
    noun = "module" if result.kind == "adapter" else "tensor"
    compared = counted(len(result.modules), noun)
    if result.equal:
        return f"equal: {compared} compared"
    numbers = [
        f"{name} {value:.6g}"
        for name, value in (("cosine", result.cosine), ("relative error", result.relative_error))
        if value is not None
    ]
    return ", ".join([f"{different} of {compared} differ", *numbers])
