"""One file per way of combining adapters; a method is found by being here."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import cast

from adaptool.combinations.method import AnyMethod
from adaptool.discovery import marked


@functools.cache
def methods() -> Mapping[str, AnyMethod]:
    """Every method by name: the modules of this package that declare one."""
    return cast("Mapping[str, AnyMethod]", marked(__name__, __path__, "METHOD"))
