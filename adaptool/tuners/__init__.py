"""One file per tuner; a tuner is found by being here."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import cast

from adaptool.discovery import marked
from adaptool.model.tuner import Tuner


@functools.cache
def tuners() -> Mapping[str, Tuner]:
    """Every tuner by name: the modules of this package that declare one."""
    return cast("Mapping[str, Tuner]", marked(__name__, __path__, "DECLARATION"))
