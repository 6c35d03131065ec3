"""Adapters that meet one rule of a runtime each, for every rule of every runtime.

All start from the same plain LoRA on a small llama, which every runtime takes in its own layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptool.errors import AdaptoolError
from adaptool.layouts import decode
from adaptool.model.adapter import Adapter
from adaptool.runtimes import Candidate
from adaptool.store.adapter_files import AdapterFiles, open_adapter
from small_pairs import (
    EXPERTS,
    HIDDEN,
    INNER,
    PREFIX,
    RANK,
    VOCAB,
    Array,
    config_of,
    drawn,
    llama_factors,
    lora,
    save,
    save_adapter,
)

OWN_LAYOUT = {
    "comfyui": "comfyui",
    "diffusers": "diffusers",
    "llamacpp": "gguf",
    "mlx": "mlx",
    "sglang": "peft",
    "vllm": "peft",
}
"""The layout that each runtime calls its own."""
PIPELINES = {"comfyui": "diffusion_model.", "diffusers": "transformer."}
"""The runtimes of diffusion pipelines, and what keys of that layout begin with."""
_OF_PIPELINE = {
    "self_attn.q_proj": "attn.to_q",
    "self_attn.k_proj": "attn.to_k",
    "self_attn.v_proj": "attn.to_v",
    "self_attn.o_proj": "attn.to_out.0",
    "mlp.gate_proj": "img_mlp.net.0.proj",
    "mlp.up_proj": "txt_mlp.net.0.proj",
    "mlp.down_proj": "txt_mlp.net.2",
}
Q_PROJ = "model.layers.0.self_attn.q_proj"
EMBEDDING = "model.embed_tokens"
MLX_PARAMETERS = {"rank": RANK, "scale": 1.4, "dropout": 0.0}
MLX_CONFIG = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": MLX_PARAMETERS}


@dataclass(frozen=True)
class Case:
    """What an adapter differs in from the plain one, and what else that brings with it.

    `more` tensors are added, `config` and `without` change adapter_config.json. `names` are the
    keys of a file in another layout, of which only the names count, `layout` that layout where it
    is not the runtime's own. `file` is the weights' name where it is a file without a folder, `mlx`
    the config of MLX-LM's, which lies beside `names` too where `mlx_beside`. `beside` are further
    files, `base` is the config of the base. `also` are other rules of the runtime that the adapter
    meets, `field` is what the finding names.
    """

    more: Mapping[str, Array] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=llama_factors)
    config: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    layout: str | None = None
    file: str | None = None
    mlx: Mapping[str, Any] = field(default_factory=lambda: MLX_CONFIG)
    mlx_beside: bool = False
    beside: Mapping[str, str] = field(default_factory=dict)
    base: Mapping[str, Any] | None = None
    also: frozenset[str] = frozenset()
    field: str | None = None


def candidate(stack: ExitStack, folder: Path, runtime: str, case: Case) -> Candidate:
    """The case as `runtime` meets it; closed with `stack`."""
    config = {**config_of(**_scale(runtime)), **case.config}
    for name in case.without:
        del config[name]
    save_adapter(folder / "adapter", {**case.tensors, **case.more}, config)
    for name, text in case.beside.items():
        (folder / "adapter" / name).write_text(text)
    layout = case.layout or OWN_LAYOUT[runtime]
    files = stack.enter_context(open_adapter(folder / "adapter"))
    adapter = _decoded(files)
    seen = _seen(stack, folder, runtime, case, config) or files
    named = replace(adapter, layout=layout) if adapter is not None else None
    return Candidate(seen, named, layout, case.base)


def _scale(runtime: str) -> dict[str, Any]:
    """A scale of 1 where the layout has none of its own."""
    return {"lora_alpha": RANK} if runtime in ("diffusers", "comfyui") else {}


def _decoded(files: AdapterFiles) -> Adapter | None:
    try:
        return decode(files)
    except AdaptoolError:
        return None


def _seen(
    stack: ExitStack, folder: Path, runtime: str, case: Case, config: Mapping[str, Any]
) -> AdapterFiles | None:
    """The file that the runtime looks at, where it is not the PEFT folder."""
    pipeline = runtime in PIPELINES
    if runtime != "mlx" and not case.names and case.file is None and not pipeline:
        return None
    seen = folder / "seen"
    seen.mkdir()
    file = seen / (case.file or "adapters.safetensors")
    tensors = {name: drawn(0, 2, 2) for name in case.names} or {**case.tensors, **case.more}
    if pipeline and not case.names:
        prefix = PIPELINES[case.layout or OWN_LAYOUT[runtime]]
        tensors = {_in_pipeline(name, prefix): value for name, value in tensors.items()}
    save(file, tensors, "float32")
    own = case.mlx if runtime == "mlx" else config
    if own and (not case.names or case.mlx_beside):
        (seen / "adapter_config.json").write_text(json.dumps(own))
    return stack.enter_context(open_adapter(file))


def _in_pipeline(name: str, prefix: str) -> str:
    """A llama's key as one of Qwen-Image's, which has the same names everywhere."""
    for here, there in _OF_PIPELINE.items():
        name = name.replace(here, there)
    return name.replace(PREFIX, prefix).replace("model.layers.", "transformer_blocks.")


def _magnitudes(factors: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name.replace("lora_B.weight", "lora_magnitude_vector"): 1 + drawn(1, len(factor))
        for name, factor in factors.items()
        if "lora_B" in name
    }


def _stack() -> dict[str, Array]:
    module = "model.layers.0.mlp.experts"
    return lora(module, HIDDEN, INNER, seed=5, rank=EXPERTS * RANK)


def _embedding() -> dict[str, Array]:
    return {
        f"{PREFIX}{EMBEDDING}.lora_embedding_A": drawn(5, RANK, VOCAB),
        f"{PREFIX}{EMBEDDING}.lora_embedding_B": drawn(6, HIDDEN, RANK),
    }


def _convolution() -> dict[str, Array]:
    module = f"{PREFIX}model.layers.0.patch"
    return {
        f"{module}.lora_A.weight": drawn(5, RANK, 3, 2, 2),
        f"{module}.lora_B.weight": drawn(6, HIDDEN, RANK, 1, 1),
    }


_EXPERT = {"target_parameters": ["mlp.experts.down_proj"]}
_WITH_EMBEDDING = [*config_of()["target_modules"], "embed_tokens"]
_WITH_HEAD = [*config_of()["target_modules"], "lm_head"]
_HEAD = lora("lm_head", VOCAB, HIDDEN, seed=9)
_Q_ALONE = lora(Q_PROJ, HIDDEN, HIDDEN, seed=1)
_ADDED = {"added_tokens.json": '{"<new>": 97, "<old>": 3}'}
_ROWS = {f"{PREFIX}{EMBEDDING}.token_adapter.trainable_tokens_delta": drawn(5, 2, HIDDEN)}
_BIAS = {f"{PREFIX}{Q_PROJ}.bias": drawn(5, HIDDEN)}
_HEAD_WHOLE = {f"{PREFIX}lm_head.weight": drawn(7, VOCAB, HIDDEN)}
_LAYER_NORM = {f"{PREFIX}model.layers.0.input_layernorm.weight": drawn(8, HIDDEN)}
_SCORE = {f"{PREFIX}score.weight": drawn(8, 2, HIDDEN)}
_CLASSIFIER = {f"{PREFIX}classifier.weight": drawn(8, 2, HIDDEN)}
_COPY = {f"{PREFIX}{EMBEDDING}.base_layer.weight": drawn(8, VOCAB, HIDDEN)}
_TIED, _APART = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
_NAMED_KEYS = {
    name.replace(".weight", ".default.weight"): value for name, value in llama_factors().items()
}

_FLUX_QKV = "lora_unet_double_blocks_0_img_attn_qkv"
_FLUX_VECTOR = "lora_unet_vector_in_in_layer"
_WAN_Q = "diffusion_model.blocks.0.self_attn.q"

# One for each rule that several runtimes have.
SHARED = {
    "other tuners": Case(config={"peft_type": "LOHA"}, field="peft_type"),
    "DoRA": Case(more=_magnitudes(llama_factors()), config={"use_dora": True}, field="use_dora"),
    "lora_bias": Case(
        more={f"{PREFIX}{Q_PROJ}.lora_B.bias": drawn(5, HIDDEN)},
        config={"lora_bias": True},
        field="lora_bias",
    ),
    "biases": Case(more=_BIAS, config={"bias": "lora_only"}, field="bias"),
    "token rows": Case(
        more=_ROWS, config={"trainable_token_indices": [1, 2]}, field="trainable_token_indices"
    ),
    "layer_replication": Case(
        config={"layer_replication": [[0, 2], [1, 2]]}, field="layer_replication"
    ),
    "PiSSA and its like": Case(
        config={"init_lora_weights": "pissa_niter_4"}, field="init_lora_weights"
    ),
    "copies of the embeddings": Case(more=_COPY),
    "convolutions": Case(more=_convolution()),
    "aLoRA": Case(config={"alora_invocation_tokens": [1, 2]}, field="alora_invocation_tokens"),
    "r, lora_alpha or target_modules missing": Case(
        without=("target_modules",), field="target_modules"
    ),
    "no adapter_config.json": Case(
        names=("base_model.model.a.lora_A.weight",), file="adapter_model.safetensors"
    ),
}

OWN = {
    ("vllm", "no adapter_config.json"): replace(
        SHARED["no adapter_config.json"],
        also=frozenset({"r, lora_alpha or target_modules missing"}),
    ),
    ("vllm", "a text model's names"): Case(base={"model_type": "llava", "vision_config": {}}),
    ("vllm", "a text model's names, perhaps"): Case(
        base={"model_type": "of_tomorrow", "vision_config": {}}
    ),
    ("vllm", "other file names"): Case(file="my_lora.safetensors"),
    ("vllm", "adapter names in keys"): Case(tensors=_NAMED_KEYS),
    ("vllm", "modules_to_save"): Case(
        more=_HEAD_WHOLE, config={"modules_to_save": ["lm_head"]}, field="modules_to_save"
    ),
    ("vllm", "whole tensors but one classifier"): Case(more=_HEAD_WHOLE),
    ("vllm", "several classifiers"): Case(
        more=_SCORE | _CLASSIFIER, config={"modules_to_save": ["classifier", "score"]}
    ),
    ("vllm", "BD-LoRA"): Case(config={"use_bdlora": {"nblocks": 2}}, field="use_bdlora"),
    ("vllm", "QALoRA"): Case(config={"use_qalora": True}, field="use_qalora"),
    ("vllm", "PiSSA, OLoRA, CorDA, LoftQ"): SHARED["PiSSA and its like"],
    ("vllm", "LoRA-GA's change of the base"): Case(
        config={"init_lora_weights": "lora_ga"}, field="init_lora_weights"
    ),
    ("vllm", "ranks above 512"): Case(
        tensors=lora(Q_PROJ, HIDDEN, HIDDEN, seed=1, rank=513), config={"r": 513}, field="r"
    ),
    ("vllm", "ranks above 16"): Case(
        tensors=lora(Q_PROJ, HIDDEN, HIDDEN, seed=1, rank=17), config={"r": 17}, field="r"
    ),
    ("vllm", "Unsloth's expert packing"): Case(
        config={"lora_B_layout": "grouped_by_expert"}, field="lora_B_layout"
    ),
    ("vllm", "stacked experts"): Case(more=_stack(), config=_EXPERT),
    ("vllm", "embed_tokens, lm_head"): Case(
        more=_embedding(), config={"target_modules": _WITH_EMBEDDING}
    ),
    ("sglang", "no adapter_config.json"): replace(
        SHARED["no adapter_config.json"],
        also=frozenset({"r, lora_alpha or target_modules missing"}),
    ),
    ("sglang", "target_modules as a pattern"): Case(
        config={"target_modules": r".*\.(self_attn|mlp)\..*_proj"}, field="target_modules"
    ),
    ("sglang", "tokens added"): Case(beside=_ADDED, base={"vocab_size": VOCAB}),
    ("sglang", "an added_tokens.json"): Case(beside=_ADDED),
    ("sglang", "ranks that differ"): Case(
        tensors=llama_factors() | lora(Q_PROJ, HIDDEN, HIDDEN, seed=1, rank=3),
        config={"rank_pattern": {Q_PROJ: 3}, "alpha_pattern": {Q_PROJ: 4.2}},
        field="rank_pattern",
    ),
    ("sglang", "rsLoRA, alpha_pattern"): Case(config={"use_rslora": True}, field="use_rslora"),
    ("sglang", "q_proj or v_proj alone"): Case(tensors=_Q_ALONE, field="target_modules"),
    ("sglang", "stacked experts"): Case(more=_stack(), config=_EXPERT),
    ("sglang", "whole tensors of layers"): Case(more=_LAYER_NORM),
    ("sglang", "other whole tensors"): Case(
        more=_SCORE, config={"modules_to_save": ["score"]}, field="modules_to_save"
    ),
    ("sglang", "embeddings not targeted"): Case(more=_embedding(), field="target_modules"),
    ("sglang", "modules outside layers.N."): Case(
        tensors=lora("transformer.h.0.attn.c_attn", 3 * HIDDEN, HIDDEN, seed=1)
    ),
    ("llamacpp", "rsLoRA, alpha_pattern (by its converter)"): Case(
        config={"use_rslora": True}, layout="peft", field="use_rslora"
    ),
    ("llamacpp", "whole tensors"): Case(more=_HEAD_WHOLE),
    ("llamacpp", "norms"): Case(more=_LAYER_NORM),
    ("llamacpp", "lm_head of a tied base"): Case(
        more=_HEAD, config={"target_modules": _WITH_HEAD}, base=_TIED
    ),
    ("llamacpp", "lm_head"): Case(more=_HEAD, config={"target_modules": _WITH_HEAD}),
    ("mlx", "no adapter_config.json"): Case(
        mlx={}, also=frozenset({"rank, scale, dropout or num_layers missing"})
    ),
    ("mlx", "other file names"): Case(file="adapter.safetensors"),
    ("mlx", "rank, scale, dropout or num_layers missing"): Case(
        mlx={**MLX_CONFIG, "lora_parameters": {"rank": RANK, "alpha": 7, "dropout": 0.0}},
        field="lora_parameters.scale",
    ),
    ("mlx", "ranks that differ"): Case(
        mlx={**MLX_CONFIG, "lora_parameters": {**MLX_PARAMETERS, "rank": 8}},
        field="lora_parameters.rank",
    ),
    ("mlx", "alpha beside scale"): Case(
        mlx={**MLX_CONFIG, "lora_parameters": {**MLX_PARAMETERS, "alpha": 16}},
        field="lora_parameters.alpha",
    ),
    ("mlx", "other tuners"): replace(
        SHARED["other tuners"], mlx={**MLX_CONFIG, "peft_type": "LOHA"}
    ),
    ("mlx", "DoRA on experts"): Case(
        tensors=_stack() | _magnitudes(_stack()), config={**_EXPERT, "use_dora": True}
    ),
    ("mlx", "models that it lacks"): Case(base={"model_type": "bert"}),
    ("mlx", "modules that its model lacks"): Case(
        names=("model.visual.blocks.0.attn.qkv.lora_a",), mlx_beside=True
    ),
    ("mlx", "kv_b_proj"): Case(
        names=("model.layers.0.self_attn.kv_b_proj.lora_a",), mlx_beside=True
    ),
    ("mlx", "layer_replication"): replace(
        SHARED["layer_replication"], mlx={**MLX_CONFIG, "layer_replication": [[0, 2]]}
    ),
    ("mlx", "biases"): Case(more=_BIAS, config={"bias": "lora_only"}),
    ("mlx", "whole tensors"): Case(more=_HEAD_WHOLE),
    ("diffusers", "DoRA of kohya and LyCORIS"): Case(
        names=("lora_unet_a.lora_down.weight", "lora_unet_a.dora_scale"), layout="kohya"
    ),
    ("diffusers", "LoHa, Tucker factors"): Case(names=("lora_unet_a.hada_w1_a",), layout="kohya"),
    ("diffusers", "full differences"): Case(names=("lora_unet_a.diff",), layout="kohya"),
    ("diffusers", "LoKr"): Case(names=("lora_unet_a.lokr_w1",), layout="kohya"),
    ("diffusers", "names that it does not convert"): Case(
        names=(f"{_FLUX_VECTOR}.lora_down.weight", f"{_FLUX_QKV}.lora_down.weight"),
        layout="kohya",
    ),
    ("diffusers", "names that its converter raises on"): Case(
        names=("diffusion_model.patch_embedding.lora_A.weight", f"{_WAN_Q}.lora_A.weight"),
        layout="comfyui",
    ),
    ("diffusers", "text_model. in the metadata"): Case(
        config={"text_encoder.target_modules": ["text_model.encoder.layers.0.self_attn.q_proj"]},
        field="text_encoder.target_modules",
    ),
    ("comfyui", "names that are not in its map"): Case(
        names=("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",),
        layout="diffusers",
    ),
    ("comfyui", "modules of models without a table"): Case(
        names=("diffusion_model.tomorrow.0.mlp.lora_A.weight",)
    ),
    ("comfyui", "DoRA over outputs"): Case(
        names=("lora_unet_mid_block_attentions_0_proj_in.dora_scale",), layout="kohya"
    ),
    ("diffusers", "whole tensors"): Case(more=_HEAD_WHOLE),
    ("comfyui", "a scale in the metadata"): Case(
        config={"lora_alpha": 7}, layout="diffusers", field="lora_alpha"
    ),
    ("comfyui", "DoRA of PEFT"): replace(SHARED["DoRA"], layout="diffusers", field=None),
    ("comfyui", "lora_bias"): replace(SHARED["lora_bias"], field=None),
    ("comfyui", "whole tensors"): Case(more=_HEAD_WHOLE, layout="diffusers"),
    ("comfyui", "biases"): replace(SHARED["biases"], layout="diffusers"),
}


def case_of(runtime: str, about: str) -> Case:
    """The adapter that meets this rule of this runtime."""
    return OWN.get((runtime, about)) or SHARED[about]
