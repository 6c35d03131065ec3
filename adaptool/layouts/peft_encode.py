r"""An adapter in PEFT's layout: the keys, and the adapter_config.json that PEFT reads them by.

PEFT looks rank and alpha up in `rank_pattern` and `alpha_pattern`, the first key that matches
`(.*\.)?(key)$` (PEFT >= 0.15), and falls back to `r` and `lora_alpha`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.layouts.peft_modules import MHA_OUT, WRAPPED, parameter_paths
from adaptool.layouts.peft_scales import (
    Scales,
    by_name,
    carrier,
    looked_up,
    own_scaling,
    scales_of,
)
from adaptool.layouts.peft_targets import SHIFT, Held, held, module_of, selecting
from adaptool.layouts.pipeline_names import bare, is_one_component
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.model.derived import F32, F64, padded, scaled, zeros
from adaptool.model.encoding import Destination, Encoded, Loss, Written, in_safetensors
from adaptool.model.plan import Document
from adaptool.model.reading import BaseNames
from adaptool.store.adapter_files import CONFIG_FILE, METADATA_KEYS, WEIGHTS_FILE
from adaptool.store.documents import encode_json
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

__all__ = ["PLAIN", "config_of", "encode", "looked_up", "losses"]

PREFIX = "base_model.model."
# Tuners whose keys are made here; those of others are kept as PEFT stored them.
WRITTEN = frozenset({"lora", "dora", SHIFT})
TOKENS = "token_adapter.trainable_tokens_delta"
# What the kinds of adapters that scale by alpha / r call their alpha.
ALPHAS: Mapping[str, str] = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
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

    Tuners of PEFT's other types go from PEFT to PEFT only: a config for them is not made up. Its
    `use_dora` and `lora_bias` are for all modules of an adapter.
    """
    factored = {delta.module for delta in adapter.deltas if delta.tuner != SHIFT}
    foreign = [
        delta
        for delta in adapter.deltas
        if (delta.tuner not in WRITTEN or not _is_beside(delta, factored))
        and not _is_stored_by_peft(delta)
    ]
    found = tuple(
        Loss(
            tuple(ref.name for ref in delta.roles.values()),
            f"{delta.module}: {delta.tuner} of another layout (--as lora may express it)",
        )
        for delta in foreign
    )
    return (*found, *_partial(adapter, foreign))


def _is_beside(delta: Delta, factored: set[str]) -> bool:
    """Whether a difference is that of a bias beside factors: lora_bias."""
    if delta.tuner != SHIFT:
        return True
    return delta.parameter == f"{delta.module}.bias" and delta.module in factored


def _is_stored_by_peft(delta: Delta) -> bool:
    return all(ref.name.startswith("base_model.") for ref in delta.roles.values())


def _partial(adapter: Adapter, foreign: Sequence[Delta]) -> Iterator[Loss]:
    """Magnitudes where some modules have none."""
    own = [delta for delta in adapter.deltas if delta not in foreign and delta.tuner != SHIFT]
    scaled_rows = [delta for delta in own if delta.tuner == "dora"]
    if not scaled_rows or len(scaled_rows) == len(own):
        return
    names = tuple(delta.roles["magnitude"].name for delta in scaled_rows)
    why = f"DoRA is for all modules of an adapter or none, here for {len(names)} of {len(own)}"
    yield Loss(names, f"{why} (--as lora --base BASE --rank N expresses it)")


def encode(adapter: Adapter, destination: Destination) -> Encoded:
    """Keys as PEFT saves them; patterns where ranks or scales differ.

    MismatchError where `bake` asks for a scale of 1 that the kind of adapter cannot have, and for
    a LoRA that wraps no module.
    """
    adapter = _local(adapter)
    found = held(adapter, destination.base)
    scales = _scales(adapter, bake=destination.bake)
    config = _config(adapter, found, scales)
    _check_wraps(adapter, found)
    tensors = [*_factors(adapter, scales), *_replaced(adapter, config, found)]
    if config.get("lora_bias") and _kind(adapter) == "LORA":
        tensors += _zero_biases(adapter, found)
    if destination.file is not None:
        text = encode_json(config).decode()
        return in_safetensors(destination.file, tensors, {METADATA_KEYS[0]: text, "format": "pt"})
    document = Document(CONFIG_FILE, content=encode_json(config))
    return in_safetensors(WEIGHTS_FILE, tensors, {"format": "pt"}, (document,))


def _check_wraps(adapter: Adapter, found: Held) -> None:
    """MismatchError for whole tensors and token rows alone: PEFT loads no such LoRA."""
    if _kind(adapter) != "LORA" or found.modules or found.parameters or adapter.deltas:
        return
    message = "PEFT loads no LoRA without factors, and there are whole tensors or token rows only"
    raise MismatchError(
        message,
        code=Code.LAYOUT_CANNOT_HOLD,
        file=adapter.name,
        field="target_modules",
        hint="adaptool merge holds them",
    )


def _local(adapter: Adapter) -> Adapter:
    """Modules of one component of a pipeline as PEFT finds them there: without its name."""
    modules = [delta.module for delta in adapter.deltas]
    if adapter.config.get("peft_type") or not is_one_component(adapter.layout, modules):
        return adapter
    return replace(
        adapter,
        deltas=tuple(
            replace(delta, module=bare(delta.module), parameter=bare(delta.parameter))
            for delta in adapter.deltas
        ),
        replaced=tuple(replace(item, parameter=bare(item.parameter)) for item in adapter.replaced),
    )


def _scales(adapter: Adapter, *, bake: bool) -> Scales:
    """What PEFT will scale by; nothing for kinds whose scale is no alpha / r."""
    field = ALPHAS.get(_kind(adapter))
    ranked = [
        delta for delta in adapter.deltas if delta.terms.rank is not None and delta.tuner != SHIFT
    ]
    if field is None or not ranked:
        return Scales({}, {})
    if not bake and field != ALPHAS["LORA"]:
        return Scales({}, {})  # as it was read
    if bake:
        _refuse_bound(adapter, ranked)
    rslora = bool(adapter.config.get("use_rslora"))
    return scales_of(ranked, rslora=rslora, bake=bake, alpha_field=field)


def _kind(adapter: Adapter) -> str:
    return str(adapter.config.get("peft_type") or "LORA")


def _refuse_bound(adapter: Adapter, ranked: Sequence[Delta]) -> None:
    """MismatchError where a scale that is not 1 decides more than the size of one product."""
    bound = [
        delta for delta in ranked if carrier(delta) is None and own_scaling(delta) not in (0.0, 1.0)
    ]
    if bound:
        title = tuners()[bound[0].tuner].DECLARATION.title
        message = (
            f"{title}'s scale, {own_scaling(bound[0]):g}, also decides what it takes out of the "
            "base: it cannot be moved into a factor"
        )
        hint = "convert --to lora --base BASE --rank N gives a plain LoRA, without --bake-scale"
        raise MismatchError(
            message,
            code=Code.LAYOUT_CANNOT_HOLD,
            file=adapter.name,
            tensor=bound[0].module,
            field="--bake-scale",
            hint=hint,
        )


def _factors(adapter: Adapter, scales: Scales) -> Iterable[Written]:
    paths = parameter_paths([delta.parameter for delta in adapter.deltas if by_name(delta)])
    rank = {looked_up(delta): delta.terms.rank or 0 for delta in adapter.deltas}
    for delta in adapter.deltas:
        rank[looked_up(delta)] = max(rank[looked_up(delta)], delta.terms.rank or 0)
    others: dict[str, Written] = {}
    for delta in adapter.deltas:
        share, scaling = scales.share(delta), carrier(delta)
        if delta.tuner not in WRITTEN:
            # Roles that several modules share, or several deltas of one, are one tensor.
            for role, ref in delta.roles.items():
                others[ref.name] = _shared(ref.name, ref, share if role == scaling else 1.0, None)
            continue
        keys = tuners()[delta.tuner].DECLARATION.keys
        ending = {role: key for key, role in reversed(list(keys.items()))}
        for role, ref in delta.roles.items():
            name = f"{PREFIX}{paths.get(delta.parameter, delta.module)}.{ending[role]}"
            whole = _at_rank(role, ref, delta, rank[looked_up(delta)])
            yield _shared(name, whole, share if role == scaling else 1.0, delta)
    yield from others.values()


def _zero_biases(adapter: Adapter, found: Held) -> Iterator[Written]:
    """Biases of 0 for the factors that have none: PEFT's `lora_bias` is for all modules.

    MismatchError where the layer has no bias, or is not known to have one: PEFT refuses those.
    """
    biased = {delta.module for delta in adapter.deltas if delta.tuner == SHIFT}
    for delta in adapter.deltas:
        if delta.module in biased:
            continue
        layer = looked_up(delta)
        if by_name(delta) or f"{layer}.bias" not in found.known.parameters:
            known = found.known.complete
            why = "a layer without bias" if known else "a layer that may have no bias"
            message = f"lora_bias is for all modules of an adapter or none, and this is {why}"
            raise MismatchError(
                message,
                code=Code.LAYOUT_CANNOT_HOLD,
                file=adapter.name,
                tensor=delta.module,
                field="lora_bias",
                hint="adaptool merge holds it" if known else "--base BASE tells which layers do",
            )
        yield Written(
            f"{PREFIX}{delta.module}.lora_B.bias",
            zeros(delta.module, F32, (delta.terms.out,)),
            F32,
        )


def _at_rank(role: str, ref: TensorRef, delta: Delta, rank: int) -> TensorRef:
    """A factor with zeros for the ranks that another module of the same name has more."""
    if not delta.terms.rank or delta.terms.rank == rank or delta.terms.experts:
        return ref
    axis = {"A": 0, "embedding_A": 0, "B": 1, "embedding_B": 1}.get(role)
    return ref if axis is None else padded(ref, rank, axis)


def _shared(name: str, ref: TensorRef, share: float, delta: Delta | None) -> Written:
    """The tensor times `share`; scaled ones in float32 where the file's dtype holds less."""
    if share == 1.0:
        return Written(name, ref, (delta.dtype if delta is not None else None) or ref.dtype)
    return Written(name, scaled(ref, share), F64 if ref.dtype == F64 else F32)


def _replaced(adapter: Adapter, config: Mapping[str, Any], found: Held) -> Iterable[Written]:
    depths = _depths(adapter, found)
    for item in adapter.replaced:
        own = item.value.name
        # Configs of other kinds are as they were read, and so are the keys beside their tensors.
        kept = config["peft_type"] != "LORA" and own.startswith(PREFIX)
        name = own if kept else f"{PREFIX}{_replaced_key(item, depths, found)}"
        yield Written(name, item.value, item.dtype or item.value.dtype)


def _replaced_key(item: Replaced, depths: Mapping[str, int], found: Held) -> str:
    """The parameter's path in the adapted model: wrapped modules hold theirs one deeper."""
    module = module_of(item)
    if item.rows is not None:
        return f"{module}.{TOKENS}"
    if module in found.rows:
        return f"{module}.token_adapter.base_layer.{item.parameter.rpartition('.')[2]}"
    path = ""
    for part in module.split("."):
        path = f"{path}.{part}" if path else part
        path += WRAPPED * depths.get(path.replace(f"{WRAPPED}.", "."), 0)
    return f"{path}.{item.parameter.rpartition('.')[2]}"


def _depths(adapter: Adapter, found: Held) -> dict[str, int]:
    """How many times each wrapped module is."""
    depths = dict.fromkeys(found.modules, 1)
    for delta in adapter.deltas:
        if delta.module.endswith(MHA_OUT):
            depths[delta.module.removesuffix(MHA_OUT) + ".out_proj"] = 1
    for parameter in found.parameters:
        module = parameter.rpartition(".")[0]
        depths[module] = depths.get(module, 0) + 1
    return depths


def config_of(
    adapter: Adapter, *, bake: bool = False, base: BaseNames | None = None
) -> dict[str, Any]:
    """adapter_config.json as the deltas need it; `peft_fields.py` says which fields they decide."""
    return _config(adapter, held(adapter, base), _scales(adapter, bake=bake))


def _config(adapter: Adapter, found: Held, scales: Scales) -> dict[str, Any]:
    given = {**adapter.config, "base_model_name_or_path": adapter.base}
    if _kind(adapter) != "LORA":
        return _canonical({**given, **scales.fields})
    config = given if adapter.config.get("peft_type") else {**PLAIN, **given}
    config |= scales.fields or {name: config.get(name, 1) for name in ("r", "lora_alpha")}
    config |= _switches(adapter, config)
    return _canonical(config | selecting(config, found))


def _switches(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the kinds of deltas decide: DoRA, biases of factors, blocks, parameters by name."""
    tuned = {delta.tuner for delta in adapter.deltas}
    special = {
        tuner.DECLARATION.switch: name
        for name, tuner in tuners().items()
        if tuner.DECLARATION.switch and tuner.DECLARATION.serves("LORA")
    }
    found: dict[str, Any] = {switch: None for switch, name in special.items() if name not in tuned}
    blocks = any(
        key.startswith("blocks") for delta in adapter.deltas for key in delta.terms.conventions
    )
    if not blocks:
        found["use_bdlora"] = None
    found = {name: value for name, value in found.items() if config.get(name) is not None}
    found["use_dora"] = "dora" in tuned
    if SHIFT in tuned or config.get("lora_bias"):
        found["lora_bias"] = SHIFT in tuned
    if any(by_name(delta) for delta in adapter.deltas):
        # PEFT refuses both beside parameters that are targeted by name; neither has an effect here.
        found |= {"lora_dropout": 0.0, "fan_in_fan_out": False}
    return found


def _canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sorted keys, sorted sets: PEFT writes lists that were sets in any order."""
    body = dict(sorted(config.items()))
    for name in ("target_modules", "modules_to_save", "exclude_modules", "target_parameters"):
        if isinstance(body.get(name), list | tuple | set):
            body[name] = sorted(body[name])
    return body
