"""What the tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptool.cli.main import main


@pytest.fixture
def adaptool(capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command line; returns the JSON, or the text where `text` is asked for."""

    def call(*arguments: str | Path, code: int = 0, text: bool = False) -> Any:
        given = [*map(str, arguments), *([] if text or "--json" in arguments else ["--json"])]
        capfd.readouterr()
        found = main(given)
        out, err = capfd.readouterr()
        assert found == code, (out, err)
        return (out, err) if text else json.loads(out)

    return call
