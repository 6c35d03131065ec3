"""One file per storage scheme of a quantized base; a scheme is found by being here."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from adaptool.model.quantizer import Quantizer


@functools.cache
def quantizers() -> Mapping[str, Quantizer]:
    """Every quantizer by name: the modules of this package that declare a SCHEME."""
    found: dict[str, Quantizer] = {}
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        if hasattr(module, "SCHEME"):
            found[entry.name] = cast("Quantizer", module)
    return MappingProxyType(found)
