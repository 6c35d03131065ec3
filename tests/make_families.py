"""Writes tests/families/*.json: names, dtypes and shapes of small checkpoints, one per family.

    python tests/make_families.py [OUT]

Those of transformers are what its save_pretrained writes, in bfloat16; those of diffusers are
facts read from its source.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from diffusers_components import COMPONENTS
from family_models import FAMILIES, Family, build

FOLDER = Path(__file__).parent / "families"
_KEPT = {
    "architectures",
    "model_type",
    "n_head",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
}


def fixture(name: str) -> dict[str, Any]:
    """What the file of one family holds."""
    if name in FAMILIES:
        return _of_transformers(FAMILIES[name])
    component = COMPONENTS[name]
    return {
        "source": f"written by hand after diffusers, src/diffusers/{component.source}",
        "config": {"_class_name": component.kind, **component.config},
        "tensors": {key: ["BF16", list(shape)] for key, shape in component.shapes.items()},
    }


def _of_transformers(family: Family) -> dict[str, Any]:
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        build(family).to(torch.bfloat16).save_pretrained(folder)
        config = json.loads(Path(folder, "config.json").read_text())
        with safe_open(Path(folder, "model.safetensors"), "pt") as file:
            entries = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dict
            tensors = {
                name: [entry.get_dtype(), list(entry.get_shape())]
                for name, entry in sorted(entries.items())
            }
    return {
        "source": f"transformers {transformers.__version__}, {family.kind}.save_pretrained",
        "config": _excerpt(config),
        "tensors": tensors,
    }


def _excerpt(config: Mapping[str, Any]) -> dict[str, Any]:
    """What says where weights lie: the types, heads and ties of the model and its parts."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict) and "model_type" in value:
            found[key] = _excerpt(value)
        elif key in _KEPT:
            found[key] = value
    return found


def rendered(found: Mapping[str, Any]) -> str:
    """The file's text: a line for each tensor."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in found["tensors"].items()]
    head = {key: value for key, value in found.items() if key != "tensors"}
    body = json.dumps(head, indent=1, sort_keys=True)[:-2]
    return body + ',\n "tensors": {\n  ' + ",\n  ".join(lines) + "\n }\n}\n"


def main(folder: Path) -> None:
    """Write every family's file."""
    folder.mkdir(exist_ok=True)
    for name in (*FAMILIES, *COMPONENTS):
        (folder / f"{name}.json").write_text(rendered(fixture(name)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
