"""What is found by being there: the modules of a package that carry a mark.

Tuners, layouts, quantizers: one file each. The file's name is the registry key, and no list names
it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType, ModuleType


def marked(package: str, path: Iterable[str], mark: str) -> Mapping[str, ModuleType]:
    """Modules of `package` (its `__path__` is `path`) that define `mark`, by name, sorted."""
    names = sorted(entry.name for entry in pkgutil.iter_modules(path))
    modules = {name: importlib.import_module(f"{package}.{name}") for name in names}
    return MappingProxyType(
        {name: module for name, module in modules.items() if hasattr(module, mark)}
    )
