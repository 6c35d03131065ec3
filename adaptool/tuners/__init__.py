"""One file per tuner; a tuner is found by being here."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from adaptool.model.tuner import Tuner


@functools.cache
def tuners() -> Mapping[str, Tuner]:
    """Every tuner by name: the modules of this package that declare one."""
    found: dict[str, Tuner] = {}
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        if hasattr(module, "DECLARATION"):
            found[entry.name] = cast("Tuner", module)
    return MappingProxyType(found)
