"""What the tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptool.cli.main import main
from command_line import ADAPTER
from hub_stand_in import StandIn, at_hand


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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A Hub with the fixture's adapter on it, and a token that may write there."""
    with StandIn() as server:
        server.add("me/adapter", {path.name: path.read_bytes() for path in ADAPTER.iterdir()})
        at_hand(monkeypatch, server)
        yield server
