"""`adaptool validate PATH...`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptool.cli import options
from adaptool.cli.answer import Answer
from adaptool.cli.text import counted
from adaptool.cli.values import artifact
from adaptool.errors import CheckFailed
from adaptool.findings import Severity
from adaptool.model.results import ValidateResult
from adaptool.model.validated import Validated

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("validate", short_help="Check an adapter or checkpoint; exit 1 on an error.")
@click.argument("paths", type=artifact, nargs=-1, required=True, metavar="PATH...")
@click.option("--base", type=artifact, metavar="BASE", help="Check that PATH fits this base.")
@options.values_flag
@click.option(
    "--target",
    metavar="vllm|sglang|llamacpp|mlx|diffusers|comfyui",
    help="Will PATH load there, and mean the same?",
)
@click.option(
    "--checksum",
    is_flag=True,
    help="Compare every file's SHA-256 with SHA256SUMS and with the receipt.",
)
@click.option("--strict", is_flag=True, help="A warning counts as an error.")
@click.option(
    "--containing",
    is_flag=True,
    help="Each PATH is a file: check the adapter or model it is part of, once.",
)
@options.adapters_reading
@options.output
def command(paths: tuple[Path, ...], **flags: Any) -> Answer:  # noqa: ANN401
    """List what is wrong with each PATH, each finding with a code that never changes."""
    from adaptool import api

    result = api.validate(*paths, **flags)
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        exit=0 if result.ok else CheckFailed.exit,
        asked=False,
    )


def _people(result: ValidateResult | Validated) -> Iterator[RenderableType]:
    from adaptool.cli.rendering import finding_lines

    if isinstance(result, ValidateResult):
        yield from finding_lines(result.findings)
        yield _verdict(result)
        return
    for item in result.items:
        yield from finding_lines(item.findings)
        yield f"{item.path}: {_verdict(item)}"


def _verdict(result: ValidateResult) -> str:
    counts = Counter(finding.severity for finding in result.findings)
    found = ", ".join(
        counted(counts[severity], str(severity)) for severity in Severity if counts[severity]
    )
    verdict = "ok" if result.ok else "not ok"
    return f"{verdict}: {found or 'nothing found'}"
