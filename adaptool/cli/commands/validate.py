"""`adaptool validate PATH`."""

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

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("validate", short_help="Check an adapter or checkpoint; exit 1 on an error.")
@click.argument("path", type=artifact)
@click.option("--base", type=artifact, metavar="BASE", help="Check that PATH fits this base.")
@options.values_flag
@click.option(
    "--target",
    metavar="vllm|sglang|llamacpp|mlx|diffusers|comfyui",
    help="Will PATH load there, and mean the same?",
)
@click.option("--strict", is_flag=True, help="A warning counts as an error.")
@options.allow_pickle
@options.output
def command(path: Path, **flags: Any) -> Answer:  # noqa: ANN401
    """List what is wrong with PATH, each finding with a code that never changes."""
    from adaptool import api

    result = api.validate(path, **flags)
    return Answer(
        body=result.as_json(),
        people=lambda: _people(result),
        exit=0 if result.ok else CheckFailed.exit,
        asked=False,
    )


def _people(result: ValidateResult) -> Iterator[RenderableType]:
    from adaptool.cli.rendering import finding_lines

    yield from finding_lines(result.findings)
    counts = Counter(finding.severity for finding in result.findings)
    found = ", ".join(
        counted(counts[severity], str(severity)) for severity in Severity if counts[severity]
    )
    verdict = "ok" if result.ok else "not ok"
    yield f"{verdict}: {found or 'nothing found'}"
