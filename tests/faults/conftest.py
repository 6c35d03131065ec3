"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hub_stand_in import TOKEN, StandIn, at_hand


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A Hub without Xet and with nothing on it, and a token that may write there."""
    with StandIn() as server:
        at_hand(monkeypatch, server, TOKEN)
        yield server
