"""What adapter space asks of an adapter: which deltas have factors, what they are written as."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from adaptool.dtypes import BY_TORCH_NAME, DTYPES, Dtype
from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.layouts.peft_encode import PLAIN
from adaptool.model.adapter import Adapter, Delta
from adaptool.model.options import OutputDtype
from adaptool.names.selection import FIELDS
from adaptool.store.tensors import TensorRef
from adaptool.tuners import tuners

# Fields of any PEFT config that a plain LoRA for the same modules keeps.
SHARED_FIELDS = (
    *FIELDS,
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "layer_replication",
    "modules_to_save",
    "revision",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
)


def has_factors(delta: Delta) -> bool:
    """Whether the delta, or DoRA's direction, is a product of two thin factors."""
    if delta.terms.conventions.get("groups"):
        return False  # the product crosses the kernel's groups
    return hasattr(tuners()[delta.tuner], "product_factors")


def refuse_changed_base(adapter: Adapter, verb: str) -> None:
    """MismatchError where the factors are not the update: W itself was changed before training."""
    if adapter.changed_base is None:
        return
    message = f"{adapter.changed_base!r} changed the base before training; {verb} would be wrong"
    hint = "first: adaptool convert ADAPTER OUT --to lora --init-adapter DIR"
    raise MismatchError(
        message,
        code=Code.INIT_CHANGED_BASE,
        file=adapter.name,
        field="init_lora_weights",
        hint=hint,
    )


def as_lora(adapter: Adapter) -> Adapter:
    """The same adapter under a plain LoRA's config: what its new factors are."""
    return replace(adapter, config=lora_config(adapter.config))


def lora_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A LoRA config for the same modules; fields of other kinds of adapters are left out."""
    if config.get("peft_type") == "LORA":
        switches = {tuner.DECLARATION.switch for tuner in tuners().values()} | {"use_bdlora"}
        kept = {name: value for name, value in config.items() if name not in switches}
        return {**kept, "init_lora_weights": True}
    shared = {name: config[name] for name in SHARED_FIELDS if name in config}
    return {**PLAIN, **shared} if config else {}


def written_dtype(refs: Iterable[TensorRef], wanted: OutputDtype) -> Dtype:
    """The dtype asked for; `keep` is the widest that the refs have, at least 16 bits."""
    if wanted is not OutputDtype.KEEP:
        return BY_TORCH_NAME[str(wanted)]
    found = widest(refs)
    return found if found.bits > 8 else DTYPES["BF16"]


def widest(refs: Iterable[TensorRef]) -> Dtype:
    """The widest dtype that the refs have; indices beside the factors do not count."""
    found = [ref.dtype for ref in refs]
    floating = [dtype for dtype in found if dtype.floating]
    return max(floating or found, key=lambda dtype: dtype.bits)
