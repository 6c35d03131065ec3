"""Lists of modules that a quantized model leaves in 16 bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptool.names.fusions import FUSIONS


def extended(
    config: Mapping[str, Any], key: str, modules: Sequence[str], *, default: Sequence[str] = ()
) -> dict[str, Any]:
    """`config` with `modules` appended to its list `key`, each once.

    `default` is what loaders skip by themselves as long as there is no list.
    """
    listed = config.get(key)
    before = list(default) if listed is None else list(listed)
    return {**config, key: list(dict.fromkeys([*before, *modules]))}


def with_fused(modules: Sequence[str]) -> list[str]:
    """`modules`, and what vLLM calls them where it loads several as one (`qkv_proj`).

    For lists that vLLM compares with its own module's name; transformers has no such module.
    """
    return [*modules, *_fused(set(modules))]


def _fused(modules: set[str]) -> Iterator[str]:
    for module in sorted(modules):
        parent, _, leaf = module.rpartition(".")
        for fusion in FUSIONS:
            siblings = {f"{parent}.{member}" for member in fusion.members}
            if leaf == fusion.members[0] and siblings <= modules:
                yield f"{parent}.{fusion.fused[0]}"
