"""Module names of experts, which loaders stack into one module whatever the file does."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MEMBER = re.compile(r"(.*\bexperts)\..+")


def with_stacks(modules: Sequence[str]) -> list[str]:
    """`modules`, and after them the `experts` module of each that lies in one.

    transformers asks a skip list for the module that it makes, which is the stack.
    """
    stacks = [match[1] for module in modules if (match := _MEMBER.fullmatch(module))]
    return list(dict.fromkeys([*modules, *stacks]))
