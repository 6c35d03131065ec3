"""An adapter under the module names of transformers 4: those that the base's files still have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from campaign.bases import Base

PREFIX = "base_model.model."


def renames_of(base: Base) -> dict[str, str]:
    """Every module whose parameters have another name in the files, and its name there."""
    stored: dict[tuple[Any, ...], list[str]] = {}
    for file in sorted(base.path.glob("*.safetensors")):
        for name, value in load_file(file).items():
            stored.setdefault(
                (value.shape, value.detach().flatten()[:64].numpy().tobytes()), []
            ).append(name)
    found = {}
    modules = base.loaded.state_dict().keys()
    for name, value in base.loaded.named_parameters():
        names = stored.get((value.shape, value.detach().flatten()[:64].numpy().tobytes()), [])
        module, _, last = name.rpartition(".")
        # A tied tensor may be stored under the other end's name, which is no name of this module.
        if len(names) == 1 and names[0] not in modules and names[0].endswith(f".{last}"):
            found[module] = names[0].removesuffix(f".{last}")
    return found


def rename(path: Path, renames: Mapping[str, str]) -> bool:
    """Rewrite the adapter at `path`; False where no key has another name, or a list is no list."""
    file, config_file = path / "adapter_model.safetensors", path / "adapter_config.json"
    config = json.loads(config_file.read_text())
    fields = ("target_modules", "exclude_modules", "modules_to_save")
    if any(isinstance(config.get(field), str) for field in fields):
        return False
    tensors = load_file(file)
    renamed = {_renamed(key, renames): value for key, value in tensors.items()}
    if renamed.keys() == tensors.keys() or len(renamed) != len(tensors):
        return False
    save_file(renamed, file, {"format": "pt"})
    leaves = {new.rpartition(".")[2]: old.rpartition(".")[2] for new, old in renames.items()}
    for field in fields:
        if config.get(field):
            names = [renames.get(name, leaves.get(name, name)) for name in config[field]]
            config[field] = sorted(set(names))
    config_file.write_text(json.dumps(config))
    return True


def _renamed(key: str, renames: Mapping[str, str]) -> str:
    """By the longest module that the key is below."""
    name = key.removeprefix(PREFIX)
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = ".".join(parts[:count])
        if module in renames:
            return PREFIX + renames[module] + name.removeprefix(module)
    return key
