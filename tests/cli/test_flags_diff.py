"""The machine flags of diff: who compares, never what is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import ADAPTER, BASE

Adaptool = Callable[..., Any]


@pytest.fixture
def other(adaptool: Adaptool, tmp_path: Path) -> Path:
    """An adapter that differs in every module."""
    adaptool("resize", ADAPTER, tmp_path / "other", "--rank", "2")
    return tmp_path / "other"


def test_diff_threads(adaptool: Adaptool, other: Path) -> None:
    """The same numbers whatever the count, of adapters and of models."""
    for pair in ((ADAPTER, other), (BASE, BASE)):
        one = adaptool("diff", "--threads", "1", *pair)
        assert one == adaptool("diff", "--threads", "3", *pair)
        assert len(one["modules"]) > 10
    adaptool("diff", "--threads", "0", ADAPTER, other, code=2)


def test_diff_device(adaptool: Adaptool, other: Path) -> None:
    """What is not there is exit 7."""
    said = adaptool("diff", "--device", "cpu", ADAPTER, other)
    assert said == adaptool("diff", ADAPTER, other) or torch.cuda.is_available()
    refused = adaptool("diff", "--device", "cuda:99", ADAPTER, other, code=7)
    assert refused["error"]["code"] == "device-missing"
