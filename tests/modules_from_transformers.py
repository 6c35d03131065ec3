"""Generates adaptool/names/modules.json from the installed transformers.

    python tests/modules_from_transformers.py [OUT]

What stands in it: by kind, the last names of modules whose `weight` is not what its number of axes
suggests (`usual`: with two axes a linear layer, with more a convolution). A name maps to `*` for
the kind that most model types have it as, and to the types that have it as another. And the
headless classes: in them names have no base prefix. Models are built as for renames.json.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from renames_from_transformers import build, class_names, lend_timm, model_types, rendered

TABLE = Path(__file__).parents[1] / "adaptool" / "names" / "modules.json"
USUAL = "usual"
KINDS = ("embedding", "conv1d", "parameter")
# They compute what a linear layer does; other classes of their own (routers) answer more.
_ALIKE = frozenset({"FalconLinear", "IdeficsDecoupledLinear"})
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NUMBER = re.compile(r"\d+")


def kind_of(module: nn.Module, axes: int) -> str:
    """What an adapter has to take a module's `weight` for.

    `embedding` and `conv1d` (transformers' own, stored (in, out)); `parameter` where PEFT has no
    layer that does what the module does, so that only its weight can be targeted by name.
    """
    if isinstance(module, nn.Embedding):
        # PEFT's layer knows a factor on the rows; an offset of the indices it does not.
        same = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        return "embedding" if same else "parameter"
    if isinstance(module, Conv1D):
        return "conv1d"
    usual = nn.Linear if axes == 2 else _CONVOLUTIONS
    plain = any(type(module).forward is kind.forward for kind in (nn.Linear, *_CONVOLUTIONS))
    known = plain or type(module).__name__ in _ALIKE
    return USUAL if isinstance(module, usual) and known else "parameter"


def short_name(path: str) -> str:
    """The last name of a module; with the one before it where it is a number."""
    *parents, name = path.split(".")
    if _NUMBER.fullmatch(name) and parents:
        parent = "#" if _NUMBER.fullmatch(parents[-1]) else parents[-1]
        return f"{parent}.#"
    return name


def weights(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(short name, kind) of every module with a weight of two axes or more."""
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if path and isinstance(weight, nn.Parameter) and weight.dim() > 1:
            yield short_name(path), kind_of(module, weight.dim())


def table() -> dict[str, Any]:
    """The whole content of modules.json."""
    lend_timm()
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    headless: set[str] = set()
    for model_type in model_types():
        for name in class_names(model_type):
            # The law of renames.json lists the classes that cannot be built.
            with contextlib.suppress(Exception):
                model = build(model_type, name)
                if model.base_model_prefix and not hasattr(model, model.base_model_prefix):
                    headless.add(name)
                for short, kind in weights(model):
                    found[short][kind].add(model_type)
    kinds: dict[str, dict[str, str]] = {kind: {} for kind in (*KINDS, USUAL)}
    for short, by_kind in found.items():
        common = max(by_kind, key=lambda kind: (len(by_kind[kind]), kind == USUAL))
        for kind, types in by_kind.items():
            if kind != common:
                kinds[kind][short] = " ".join(sorted(types))
            elif kind != USUAL:
                kinds[kind][short] = "*"
    return {"transformers": transformers.__version__, **kinds, "headless": sorted(headless)}


def main() -> None:
    """Write the table."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE
    transformers.logging.set_verbosity_error()
    out.write_text(rendered(table()), encoding="utf-8")


if __name__ == "__main__":
    main()
