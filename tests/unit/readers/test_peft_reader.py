"""The reader of PEFT's layout sees what a spoilt writer would have written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptool.errors import InternalError
from adaptool.layouts import decode, writable
from adaptool.model.adapter import Adapter
from adaptool.model.derived import scaled, transposed
from adaptool.model.encoding import Destination, Encoded, Written, in_safetensors
from adaptool.model.plan import Document
from adaptool.model.reading import BaseNames
from adaptool.readers import check
from adaptool.store.adapter_files import open_adapter
from small_pairs import LLAMA, config_of, drawn, llama_base, llama_factors, save_adapter

Q = "base_model.model.model.layers.0.self_attn.q_proj"
Tensors = dict[str, Written]
Config = dict[str, Any]
BASE = BaseNames({name: value.shape for name, value in llama_base().items()}, LLAMA)


@pytest.fixture
def adapter(tmp_path: Path) -> Iterator[Adapter]:
    """Factors of every linear layer, a saved head, a pattern of ranks and alphas."""
    head = {"base_model.model.lm_head.weight": drawn(3, *llama_base()["lm_head.weight"].shape)}
    config = config_of(modules_to_save=["lm_head"], alpha_pattern={"q_proj": 3})
    save_adapter(tmp_path / "adapter", llama_factors() | head, config)
    with open_adapter(tmp_path / "adapter") as files:
        yield decode(files)


def _spoilt(encoded: Encoded, spoil: Callable[[Tensors, Config], None]) -> Encoded:
    tensors = {tensor.name: tensor for tensor in encoded.tensors}
    (document,) = encoded.documents
    config = json.loads(document.content or b"")
    spoil(tensors, config)
    written = [replace(tensor, name=name) for name, tensor in tensors.items()]
    documents = (Document(document.name, content=json.dumps(config).encode()),)
    return in_safetensors(encoded.file, written, {"format": "pt"}, documents)


def _as_it_is(tensors: Tensors, config: Config) -> None:
    del tensors, config


@pytest.mark.parametrize("base", [None, BASE], ids=["alone", "with its base"])
def test_what_is_written_passes(adapter: Adapter, base: BaseNames | None) -> None:
    """The encoder's own output is read as it is meant."""
    encoded = writable()["peft"].encode(adapter, Destination(base=base))
    check(adapter, "peft", _spoilt(encoded, _as_it_is), base)


def _without_a_factor(tensors: Tensors, _: Config) -> None:
    del tensors[f"{Q}.lora_A.weight"]


def _under_another_name(tensors: Tensors, _: Config) -> None:
    tensors[f"{Q}2.lora_A.weight"] = tensors.pop(f"{Q}.lora_A.weight")


def _exchanged(tensors: Tensors, _: Config) -> None:
    other = Q.replace("layers.0", "layers.1")
    first, second = f"{Q}.lora_B.weight", f"{other}.lora_B.weight"
    tensors[first], tensors[second] = tensors[second], tensors[first]
    first, second = f"{Q}.lora_A.weight", f"{other}.lora_A.weight"
    tensors[first], tensors[second] = tensors[second], tensors[first]


def _scaled(tensors: Tensors, _: Config) -> None:
    old = tensors[f"{Q}.lora_B.weight"]
    tensors[f"{Q}.lora_B.weight"] = replace(old, ref=scaled(old.ref, 2.0))


def _turned(tensors: Tensors, _: Config) -> None:
    for name in (f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"):
        tensors[name] = replace(tensors[name], ref=transposed(tensors[name].ref))


def _without_the_head(tensors: Tensors, _: Config) -> None:
    del tensors["base_model.model.lm_head.weight"]


def _head_one_deeper(tensors: Tensors, _: Config) -> None:
    head = tensors.pop("base_model.model.lm_head.weight")
    tensors["base_model.model.lm_head.base_layer.weight"] = head


def _changed(**fields: object) -> Callable[[Tensors, Config], None]:
    def spoil(_: Tensors, config: Config) -> None:
        config.update(fields)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        _without_a_factor,
        _under_another_name,
        _exchanged,
        _scaled,
        _turned,
        _without_the_head,
        _head_one_deeper,
        _changed(r=4),
        _changed(lora_alpha=9),
        _changed(alpha_pattern={}),
        _changed(use_rslora=True),
        _changed(rank_pattern={"k_proj": 2}),
        _changed(use_dora=True),
        _changed(lora_bias=True),
        _changed(init_lora_weights="olora"),
        _changed(target_modules=["q_proj"]),
        _changed(exclude_modules=[".*"], target_modules=["q_proj"]),
        _changed(exclude_modules=["q_proj"]),
        _changed(layers_to_transform=[1]),
        _changed(modules_to_save=["q_proj", "lm_head"]),
        _changed(target_parameters=["k_proj.weight"]),
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_spoilt_file_is_not_written(
    adapter: Adapter, spoil: Callable[[Tensors, Config], None]
) -> None:
    """A tensor lost, misnamed or changed; a field that selects or scales otherwise."""
    encoded = writable()["peft"].encode(adapter, Destination(base=BASE))
    with pytest.raises(InternalError, match=r"PEFT 0\.21\.2"):
        check(adapter, "peft", _spoilt(encoded, spoil), BASE)


@pytest.mark.parametrize("targets", [["norm", "q_proj"], ["embed_tokens", "q_proj"], ["mlp"]])
def test_module_that_is_selected_and_not_trained_is_seen_with_the_base(
    adapter: Adapter, targets: list[str]
) -> None:
    """Only the base tells of modules that the adapter does not have."""
    encoded = writable()["peft"].encode(adapter, Destination(base=BASE))
    every = json.loads(encoded.documents[0].content or b"")["target_modules"]
    spoilt = _spoilt(encoded, _changed(target_modules=[*every, *targets]))
    with pytest.raises(InternalError, match=targets[0]):
        check(adapter, "peft", spoilt, BASE)
