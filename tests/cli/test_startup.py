"""What answers from headers never pays for torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import ADAPTER, BASE, ROOT, run, run_patched

# The interpreter's last word: which of the heavy packages were imported.
SAYS_WHAT_IS_LOADED = """
import atexit
heavy = ("torch", "transformers", "peft", "huggingface_hub", "safetensors", "yaml", "jsonschema")
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
        ["run", "--help"],
        ["run", "--schema"],
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
    done = run_patched(SAYS_WHAT_IS_LOADED, *arguments)
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1] == "[]"


def test_help_does_not_import_rich_or_the_api() -> None:
    """`--help` needs click and the commands' declarations only."""
    patch = SAYS_WHAT_IS_LOADED.replace('"torch"', '"torch", "rich", "numpy", "adaptool.api"')
    done = run_patched(patch, "merge", "--help")
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1] == "[]"


def test_rerun_of_a_recipe_does_not_import_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done and unchanged is known by its digests."""
    monkeypatch.chdir(ROOT)
    recipe = ("run", "fixtures/recipe.yaml", "--set", f"out={tmp_path / 'out'}")
    first = run(*recipe)
    assert first.code == 0, first.err
    again = run_patched(SAYS_WHAT_IS_LOADED, *recipe)
    assert "ok: 6 skipped" in again.out
    assert again.err.splitlines()[-1] == "['yaml']"
