r"""An adapter in PEFT's layout: the keys, and the adapter_config.json that PEFT reads them by.

PEFT looks rank and alpha up in `rank_pattern` and `alpha_pattern`, the first key that matches
`(.*\.)?(key)$` (PEFT >= 0.15), and falls back to `r` and `lora_alpha`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adaptool.layouts.peft_modules import MHA_OUT, parameter_paths, pattern_name
from adaptool.layouts.pipeline_names import COMPONENTS, bare, is_of_pipeline
from adaptool.model.adapter import Adapter, Delta, Form, Replaced
from adaptool.model.derived import F32, F64, scaled
from adaptool.model.encoding import Destination, Encoded, Loss, Written, in_safetensors
from adaptool.model.plan import Document
from adaptool.names.patterns import LONGEST_PATH
from adaptool.store.adapter_files import CONFIG_FILE, METADATA_KEYS, WEIGHTS_FILE
from adaptool.store.documents import encode_json
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

PREFIX = "base_model.model."
# Tuners whose keys are made here; those of others are kept as PEFT stored them.
SHIFT = "shift"
WRITTEN = frozenset({"lora", "dora", SHIFT})
TOKENS = "token_adapter.trainable_tokens_delta"
# What a config made here says of a LoRA that no PEFT config came with.
PLAIN: Mapping[str, Any] = {
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 8,
    "task_type": None,
    "use_dora": False,
    "use_rslora": False,
}


def losses(adapter: Adapter) -> tuple[Loss, ...]:
    """What PEFT has no slot for.

    Tuners of PEFT's other types go from PEFT to PEFT only: a config for them is not made up.
    """
    scalings = {
        delta.module: delta.terms.scaling for delta in adapter.deltas if delta.tuner != SHIFT
    }
    foreign = [
        delta
        for delta in adapter.deltas
        if (delta.tuner not in WRITTEN or not _scales_along(delta, scalings))
        and not _is_stored_by_peft(delta)
    ]
    return tuple(
        Loss(
            tuple(ref.name for ref in delta.roles.values()),
            f"{delta.module}: {delta.tuner} of another layout (--as lora may express it)",
        )
        for delta in foreign
    )


def _scales_along(delta: Delta, scalings: Mapping[str, float]) -> bool:
    """Whether a difference is that of a bias beside factors, and at their scaling: lora_bias."""
    if delta.tuner != SHIFT:
        return True
    is_bias = delta.parameter == f"{delta.module}.bias"
    return is_bias and scalings.get(delta.module) == delta.terms.scaling


def _is_stored_by_peft(delta: Delta) -> bool:
    return all(ref.name.startswith("base_model.") for ref in delta.roles.values())


def encode(adapter: Adapter, destination: Destination) -> Encoded:
    """Keys as PEFT saves them; patterns where ranks or scales differ."""
    adapter = _local(adapter)
    config = config_of(adapter, bake=destination.bake)
    tensors = [*_factors(adapter, bake=destination.bake), *_replaced(adapter, config)]
    if destination.file is not None:
        text = encode_json(config).decode()
        return in_safetensors(destination.file, tensors, {METADATA_KEYS[0]: text, "format": "pt"})
    document = Document(CONFIG_FILE, content=encode_json(config))
    return in_safetensors(WEIGHTS_FILE, tensors, {"format": "pt"}, (document,))


def _local(adapter: Adapter) -> Adapter:
    """Modules of one component of a pipeline as PEFT finds them there: without its name."""
    modules = [delta.module for delta in adapter.deltas]
    first = {module.partition(".")[0] for module in modules}
    if adapter.config.get("peft_type") or len(first) != 1 or not first <= set(COMPONENTS):
        return adapter
    if not all(map(is_of_pipeline, modules)):
        return adapter
    return replace(
        adapter,
        deltas=tuple(
            replace(delta, module=bare(delta.module), parameter=bare(delta.parameter))
            for delta in adapter.deltas
        ),
        replaced=tuple(replace(item, parameter=bare(item.parameter)) for item in adapter.replaced),
    )


def _factors(adapter: Adapter, *, bake: bool) -> Iterable[Written]:
    paths = parameter_paths([delta.parameter for delta in adapter.deltas if _by_name(delta)])
    others: dict[str, TensorRef] = {}
    for delta in adapter.deltas:
        if delta.tuner not in WRITTEN:
            # Roles that several modules share, or several deltas of one, are one tensor.
            others |= {ref.name: ref for ref in delta.roles.values()}
            continue
        keys = tuners()[delta.tuner].DECLARATION.keys
        ending = {role: key for key, role in reversed(list(keys.items()))}
        for role, ref in delta.roles.items():
            name = f"{PREFIX}{paths.get(delta.parameter, delta.module)}.{ending[role]}"
            if bake and _carries_scale(role):
                yield _baked(name, ref, _own_scaling(delta))
            else:
                yield Written(name, ref, delta.dtype or ref.dtype)
    for name, ref in others.items():
        yield Written(name, ref, ref.dtype)


def _carries_scale(role: str) -> bool:
    return role in {"B", "embedding_B", "difference"}


def _baked(name: str, ref: TensorRef, scaling: float) -> Written:
    """Scaled once, kept in float32 where that holds more than the file's own dtype."""
    if scaling == 1.0:
        return Written(name, ref, ref.dtype)
    return Written(name, scaled(ref, scaling), F64 if ref.dtype == F64 else F32)


def _own_scaling(delta: Delta) -> float:
    """The scaling that PEFT computes from the config.

    It counts nn.MultiheadAttention's output projection twice by itself.
    """
    doubled = delta.module.endswith(MHA_OUT)
    return delta.terms.scaling / 2 if doubled else delta.terms.scaling


def _replaced(adapter: Adapter, config: Mapping[str, Any]) -> Iterable[Written]:
    for item in adapter.replaced:
        own = item.value.name
        # Rows and layers that another kind of adapter trained have other names in a LoRA's file.
        renamed = config["peft_type"] == "LORA" and (item.rows is not None or item.tuner)
        kept = own.startswith(PREFIX) and not renamed
        name = own if kept else f"{PREFIX}{_replaced_key(item)}"
        yield Written(name, item.value, item.dtype or item.value.dtype)


def _replaced_key(item: Replaced) -> str:
    if item.rows is None:
        return item.parameter
    return f"{_module_of(item)}.{TOKENS}"


def _module_of(item: Replaced) -> str:
    return item.parameter.removesuffix(".weight")


def config_of(adapter: Adapter, *, bake: bool = False) -> dict[str, Any]:
    """adapter_config.json as the deltas need it: what they do not decide stays as it was."""
    given = {**adapter.config, "base_model_name_or_path": adapter.base}
    kind = adapter.config.get("peft_type")
    if kind not in (None, "LORA"):
        return _canonical(given)  # other kinds are written as they were read
    config = given if kind else {**PLAIN, **_own_fields(adapter), **given}
    config |= _scale_fields(adapter, config, bake=bake)
    config |= _replaced_fields(adapter, config)
    config["target_modules"] = _targets(config.get("target_modules"), adapter.deltas, config)
    named = [delta.parameter for delta in adapter.deltas if _by_name(delta)]
    if named:
        config["target_parameters"] = _named_targets(config.get("target_parameters"), named)
    return _canonical(config)


def _own_fields(adapter: Adapter) -> dict[str, Any]:
    """What a config made here says of DoRA and of biases."""
    tuned = {delta.tuner for delta in adapter.deltas}
    return {"use_dora": "dora" in tuned, **({"lora_bias": True} if SHIFT in tuned else {})}


def _scale_fields(adapter: Adapter, config: Mapping[str, Any], *, bake: bool) -> dict[str, Any]:
    ranked = [delta for delta in adapter.deltas if delta.terms.rank is not None]
    factored = [delta for delta in ranked if {"B", "embedding_B"} & delta.roles.keys()]
    if factored:
        return _rank_fields(factored, rslora=bool(config.get("use_rslora")), bake=bake)
    return {name: config.get(name, 1) for name in ("r", "lora_alpha")}  # PEFT must find them


def _replaced_fields(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, Any]:
    """modules_to_save and token indices, for what a LoRA's config must name."""
    found: dict[str, Any] = {}
    rows = {_module_of(item): list(item.rows) for item in adapter.replaced if item.rows is not None}
    if rows and not config.get("trainable_token_indices"):
        found["trainable_token_indices"] = rows
    known = config.get("modules_to_save")
    foreign = _saved([item for item in adapter.replaced if item.tuner])
    if known is None and not adapter.config.get("peft_type"):
        foreign = _saved(adapter.replaced)
    if foreign:
        found["modules_to_save"] = sorted({*(known or ()), *foreign})
    return found


def _rank_fields(deltas: Sequence[Delta], *, rslora: bool, bake: bool) -> dict[str, Any]:
    """r, lora_alpha and the patterns of what differs from them."""
    names = {looked_up(delta): delta for delta in deltas}
    ranks = {name: delta.terms.rank or 1 for name, delta in names.items()}
    rank = _most(ranks.values())
    if bake:
        same = {name: float(found) for name, found in ranks.items()}
        return {**_patterns(ranks, same, rank, float(rank)), "use_rslora": False}
    alphas = {name: _alpha(delta, rslora=rslora) for name, delta in names.items()}
    return _patterns(ranks, alphas, rank, _most(alphas.values()))


def _patterns(
    ranks: Mapping[str, int], alphas: Mapping[str, float], rank: int, alpha: float
) -> dict[str, Any]:
    names = list(ranks)
    return {
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": {
            _key(name, names): found for name, found in ranks.items() if found != rank
        },
        "alpha_pattern": {
            _key(name, names): _number(found) for name, found in alphas.items() if found != alpha
        },
    }


def looked_up(delta: Delta) -> str:
    """The name that PEFT looks rank and alpha up by; modules that share it share both."""
    return delta.parameter if _by_name(delta) else pattern_name(delta.module)


def _by_name(delta: Delta) -> bool:
    """Whether PEFT targets the parameter by name (`target_parameters`), not its module."""
    return delta.terms.form is Form.EXPERTS or bool(delta.terms.conventions.get("parameter"))


def _key(name: str, names: Sequence[str]) -> str:
    """The name, anchored where another module's name ends with it."""
    shared = any(other.endswith(f".{name}") for other in names)
    return f"^{name}" if shared else name


def _alpha(delta: Delta, *, rslora: bool) -> float:
    """The alpha that gives the scaling: the one it was read with where that still does."""
    rank, scaling = delta.terms.rank or 1, _own_scaling(delta)
    divisor = math.sqrt(rank) if rslora else rank
    alpha = delta.terms.alpha
    if alpha is not None and alpha / divisor == scaling:
        return alpha
    return scaling * divisor


def _most(values: Iterable[Any]) -> Any:  # noqa: ANN401 - ranks or alphas
    """The most frequent value, of several the largest."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value))


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _saved(replaced: Sequence[Replaced]) -> list[str]:
    return sorted(
        {
            item.parameter.rpartition(".")[0]
            for item in replaced
            if item.rows is None and (item.saved_module or item.tuner)
        }
    )


def _targets(given: object, deltas: Sequence[Delta], config: Mapping[str, Any]) -> object:
    """`target_modules` as it is where it names every module, else the modules' last names."""
    modules = [
        looked_up(delta)
        for delta in deltas
        if delta.tuner != "shift" and looked_up(delta) != delta.parameter
    ]
    named = set(config.get("target_parameters") or ())
    if not deltas:
        return []
    if given is not None and all(_is_targeted(module, given) for module in modules):
        return given
    if not modules and named:
        return given
    return sorted({_last_name(module) for module in modules})


def _named_targets(given: object, parameters: Sequence[str]) -> list[str]:
    """`target_parameters`, with the last two names of every parameter that none of them ends."""
    known = list(given) if isinstance(given, Sequence | set) else []
    missing = [
        parameter
        for parameter in parameters
        if not any(f".{parameter}".endswith(f".{name}") for name in known)
    ]
    return sorted({*known, *(".".join(name.split(".")[-2:]) for name in missing)})


def _is_targeted(module: str, given: object) -> bool:
    if given == "all-linear":
        return True
    if isinstance(given, str):
        return re.fullmatch(given, module[:LONGEST_PATH]) is not None
    if isinstance(given, Sequence | set | frozenset):
        return any(f".{module}".endswith(f".{name}") for name in given)
    return False


def _last_name(module: str) -> str:
    """`q_proj`; `to_out.0` where a number alone would fit every list of modules."""
    parts = module.split(".")
    count = next((n for n, part in enumerate(reversed(parts), 1) if not part.isdigit()), len(parts))
    return ".".join(parts[-count:])


def _canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sorted keys, sorted sets: PEFT writes lists that were sets in any order."""
    body = dict(sorted(config.items()))
    for name in ("target_modules", "modules_to_save", "exclude_modules", "target_parameters"):
        if isinstance(body.get(name), list | tuple | set):
            body[name] = sorted(body[name])
    return body
