"""Generates adaptool/names/ties.json from the installed transformers.

    python tests/ties_from_transformers.py [OUT]

What it reads is public behaviour of transformers 5: which parameters every model class ties, below
which config's `tie_word_embeddings`, and what that flag is for a config.json that has it or not.
Models are built on the meta device from their default configs, cut down to a few layers.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto import configuration_auto

from renames_from_transformers import (
    class_names,
    config_for,
    configs,
    lend_timm,
    model_class,
    model_types,
    rendered,
)

TABLE = Path(__file__).parents[1] / "adaptool" / "names" / "ties.json"
FLAG = "tie_word_embeddings"
PLAIN = re.compile(r"[A-Za-z0-9_.]+")
# What a config.json may say, in the order of the table's letters: nothing, true, false.
SAID = (None, True, False)
_SCALED_BY_THE_FLAG = re.compile(r"if self\.config\.tie_word_embeddings:")

Ties = list[tuple[str, str, list[str]]]


def _with_flag(config: Any, value: bool) -> Any:
    """The config and its sub-configs, all tied or all apart."""
    if hasattr(config, FLAG):
        setattr(config, FLAG, value)
    for field in type(config).sub_configs:
        if (inner := getattr(config, field, None)) is not None:
            _with_flag(inner, value)
    return config


def _places(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, config
    for field in type(config).sub_configs:
        if (inner := getattr(config, field, None)) is not None:
            yield from _places(inner, f"{path}.{field}".removeprefix("."))


def built(model_type: str, name: str, *, tied: bool) -> PreTrainedModel | None:
    """A meta-device model of the class; None where it cannot be built here."""
    kind = model_class(model_type, name)
    if kind is None:
        return None
    # Any refusal will do: the next config may be taken, and the default one may refuse itself.
    with contextlib.suppress(Exception):
        for config in configs(model_type):
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with torch.device("meta"):
                    return kind(config_for(kind, _with_flag(config, tied)))
    return None


def ties_of(model: PreTrainedModel) -> Ties:
    """(config path, source, targets) of every tie that is named parameter by parameter."""
    paths = {id(config): path for path, config in _places(model.config)}
    found: dict[tuple[str, str], list[str]] = {}
    for prefix, part in model.named_modules():
        if not isinstance(part, PreTrainedModel) or patterns(part._tied_weights_keys):  # noqa: SLF001
            continue
        path = paths.get(id(part.config), "")
        for target, source in part.get_expanded_tied_weights_keys(all_submodels=False).items():
            name = f"{prefix}.{source}".removeprefix(".")
            found.setdefault((path, name), []).append(f"{prefix}.{target}".removeprefix("."))
    return [(path, source, sorted(targets)) for (path, source), targets in sorted(found.items())]


def patterns(keys: Mapping[str, str] | None) -> list[str]:
    """The expressions among a class's tied keys, where there are any; modules are expressions."""
    names = [*(keys or {}), *(keys or {}).values()]
    plain = all(PLAIN.fullmatch(name) and name.endswith(("weight", "bias")) for name in names)
    return [] if plain else sorted(set(names))


def _patterns_of(model: PreTrainedModel) -> list[str]:
    return sorted(
        {
            f"{prefix}.{expression}".removeprefix(".")
            for prefix, part in model.named_modules()
            if isinstance(part, PreTrainedModel)
            for expression in patterns(part._tied_weights_keys)  # noqa: SLF001
        }
    )


def flags(model_type: str, paths: Iterable[str]) -> dict[str, str]:
    """By config path the flag for each thing that a config.json may say.

    Of the outermost config it depends on what `text_config` says as well: nine letters, the outer
    one's choice changing slowest. Elsewhere three.
    """
    found = {}
    for path in sorted(paths):
        texts = SAID if path == "" else (None,)
        found[path] = "".join(
            _letter(model_type, path, said, text) for said in SAID for text in texts
        )
    return found


def _letter(model_type: str, path: str, said: bool | None, text: bool | None) -> str:
    body: dict[str, Any] = {}
    for place, value in ((path, said), ("text_config", text)):
        if value is None:
            continue
        inner = body
        for field in filter(None, place.split(".")):
            inner = inner.setdefault(field, {})
        inner[FLAG] = value
    config = _read(model_type, body)
    for field in filter(None, path.split(".")):
        config = getattr(config, field, None)
    return "T" if config is not None and getattr(config, FLAG, False) else "F"


def _read(model_type: str, body: Mapping[str, Any]) -> Any:
    """A config.json as transformers reads it; None for a flag that the model refuses."""
    kind = configuration_auto.CONFIG_MAPPING[model_type]
    try:
        return kind.from_dict(_typed(kind, body))
    except Exception:  # noqa: BLE001 - a model that cannot be tied says so by refusing
        return None


def _typed(kind: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    """Sub-configs with the model type that they have by default."""
    usual = kind()
    full = dict(body)
    for field, value in body.items():
        inner = getattr(usual, field, None)
        if isinstance(value, Mapping) and inner is not None:
            full[field] = {"model_type": inner.model_type, **value}
    return full


def kept(model_type: str) -> dict[str, Any]:
    """Config keys that follow the flag unless they are said: what they are where it is true."""
    kind = configuration_auto.CONFIG_MAPPING[model_type]
    try:
        tied, apart = (kind(**{FLAG: value}).to_dict() for value in (True, False))
    except Exception:  # noqa: BLE001 - see _read
        return {}
    return {
        key: value
        for key, value in sorted(tied.items())
        if key != FLAG and not isinstance(value, Mapping) and apart.get(key) != value
    }


def scales_by_flag(model_type: str, names: Iterable[str]) -> bool:
    """Whether the model computes something else where the flag is true."""
    kinds = [kind for name in names if (kind := model_class(model_type, name))]
    modules = {sys.modules[kind.__module__] for kind in kinds}
    return any(_SCALED_BY_THE_FLAG.search(inspect.getsource(module)) for module in modules)


def table(only: Iterable[str] | None = None) -> dict[str, Any]:
    """The whole content of ties.json, or its part for some model types."""
    lend_timm()
    classes: dict[str, Any] = {}
    types: dict[str, Any] = {}
    for model_type in model_types() if only is None else only:
        entry = _entry(model_type, classes)
        if entry is not None:
            types[model_type] = entry
    return {"transformers": transformers.__version__, "classes": classes, "types": types}


def _entry(model_type: str, classes: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of one model type; its classes' ties go into `classes`."""
    names, paths = [], set()
    for name in class_names(model_type):
        model = built(model_type, name, tied=True)
        if model is None:
            continue
        names.append(name)
        ties, expressions = ties_of(model), _patterns_of(model)
        paths |= {path for path, _, _ in ties} | ({""} if expressions else set())
        if ties or expressions:
            classes[name] = {"ties": ties, **({"patterns": expressions} if expressions else {})}
    if not names:
        return None
    entry: dict[str, Any] = {"classes": names}
    if paths:
        entry["flags"] = flags(model_type, paths)
        if more := kept(model_type):
            entry["kept"] = more
        if "F" in entry["flags"].get("", "") and scales_by_flag(model_type, names):
            entry["scaled"] = True
    return entry


def main() -> None:
    """Write the table."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE
    transformers.logging.set_verbosity_error()
    out.write_text(rendered(table()), encoding="utf-8")


if __name__ == "__main__":
    main()
