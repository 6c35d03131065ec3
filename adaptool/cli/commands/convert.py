"""`adaptool convert ADAPTER OUT --to LAYOUT`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options, values
from adaptool.cli.answer import Answer
from adaptool.cli.progress import byte_bar
from adaptool.cli.text import byte_count, counted, printable
from adaptool.model.adapter_results import ConvertResult
from adaptool.model.published import shown

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("convert", short_help="Write an adapter in another layout.")
@click.argument("adapter", type=values.artifact)
@click.argument("out", type=values.destination)
@click.option(
    "--to",
    required=True,
    metavar="LAYOUT",
    help="peft, kohya, diffusers, comfyui, mlx, gguf; lora: peft and --as lora.",
)
@click.option(
    "--as",
    "as_",
    type=click.Choice(["lora"]),
    help="Bring every kind of adapter that is low-rank to plain LoRA factors.",
)
@click.option("--rank", type=int, metavar="N", help="With --as lora: at this rank, not exactly.")
@click.option(
    "--energy",
    type=values.number,
    metavar="F",
    help="With --as lora: keep this share of the sum of squares.",
)
@click.option(
    "--base",
    type=values.artifact,
    metavar="BASE",
    help="The base: its names resolve those of the file. Its weights are read only to make LoRA "
    "of DoRA, by --as lora with --rank or --energy.",
)
@click.option(
    "--bake-scale",
    is_flag=True,
    help="alpha = r everywhere, no patterns, no rsLoRA: for runtimes that ignore them.",
)
@options.init_adapter
@options.adapter_reading
@options.attesting
@options.private
@options.writing
@options.machine
@options.output
def command(adapter: Path, out: Path, **flags: Any) -> Answer:  # noqa: ANN401
    """Write ADAPTER to OUT in another layout, or in another form in its own.

    What the layout cannot hold is an error before anything is written.
    """
    from adaptool import api

    with byte_bar("convert") as progress:
        result = api.convert(adapter, out, progress=progress, **flags)
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        findings=result.findings,
        asked=result.dry_run,
    )


def _people(result: ConvertResult) -> Iterator[RenderableType]:
    verb = "would write" if result.dry_run else "wrote"
    error = "" if result.relative_error is None else f", relative error {result.relative_error:.3g}"
    yield (
        f"{verb} {printable(shown(result.out, result.published))} ({byte_count(result.bytes)}): "
        f"{result.source} -> {result.target}, {counted(result.module_count, 'module')}{error}"
    )
    if result.carried:
        yield f"carried as they are: {', '.join(map(printable, result.carried))}"
