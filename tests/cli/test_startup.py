"""What answers from headers never pays for torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import ADAPTER, BASE, run_patched

# The interpreter's last word: which of the heavy packages were imported.
SAYS_WHAT_IS_LOADED = """
import atexit
heavy = ("torch", "transformers", "peft", "huggingface_hub", "safetensors")
atexit.register(lambda: print([name for name in heavy if name in sys.modules], file=sys.stderr))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["merge", "--help"],
        ["resize", "--help"],
        ["combine", "--help"],
        ["convert", "--help"],
        ["extract", "--help"],
        ["pull", "--help"],
        ["push", "--help"],
        ["push", ADAPTER, "hf://me/adapter", "--dry-run"],
        ["convert", "--dry-run", ADAPTER, "OUT", "--to", "peft"],
        ["convert", "--dry-run", "--json", ADAPTER, "OUT", "--to", "mlx"],
        ["validate", ADAPTER, "--target", "vllm"],
        ["inspect", ADAPTER, BASE],
        ["inspect", "--json", ADAPTER],
        ["validate", ADAPTER, "--base", BASE],
        ["merge", "--dry-run", BASE, ADAPTER, "OUT"],
        ["merge", "--dry-run", "--json", BASE, ADAPTER, "OUT"],
    ],
    ids=lambda arguments: " ".join(argument for argument in arguments if isinstance(argument, str)),
)
def test_command_does_not_import_torch(arguments: list[str | Path], tmp_path: Path) -> None:
    """Help, inspect, validate and a dry run know all they need from headers and configs."""
    arguments = [tmp_path / "out" if argument == "OUT" else argument for argument in arguments]
    run = run_patched(SAYS_WHAT_IS_LOADED, *arguments)
    assert run.code == 0, run.err
    assert run.err.splitlines()[-1] == "[]"


def test_help_does_not_import_rich_or_the_api() -> None:
    """`--help` needs click and the commands' declarations only."""
    patch = SAYS_WHAT_IS_LOADED.replace('"torch"', '"torch", "rich", "numpy", "adaptool.api"')
    run = run_patched(patch, "merge", "--help")
    assert run.code == 0, run.err
    assert run.err.splitlines()[-1] == "[]"
