"""Adapters trained with PEFT on tiny models: the table, and how an entry is made on disk.

PEFT makes the adapter and, where it merges rightly, the merged model; both go through files.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from tiny_models import MODELS, answer, build

logging.disable_progress_bar()
logging.set_verbosity_error()

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """One adapter: PEFT's options for it, and what may be asked of the merge.

    `peft_merges`: PEFT's own merge is right, tensor by tensor; elsewhere the adapted model's
    forward is the truth. `exact`: float32 arithmetic gives PEFT's bits. `trained_on`: the class it
    was trained as, where the base on disk is another one. `vocabulary`: resize to that.
    `labels`: as many as the trained head has, where the base's config does not say.
    """

    name: str
    model: str
    options: Mapping[str, Any]
    peft_merges: bool = True
    exact: bool = True
    trained_on: str | None = None
    vocabulary: int | None = None
    labels: int | None = None
    dtype: torch.dtype = torch.float32
    save: Mapping[str, Any] = field(default_factory=dict)
    loads: bool = True


@dataclass(frozen=True)
class Made:
    """A case on disk; `truth` is the adapted model's answer."""

    case: Case
    base: Path
    adapter: Path
    truth: torch.Tensor


Q_V = ["q_proj", "v_proj"]


def _case(name: str, model: str, targets: Any = None, **more: Any) -> Case:
    fields = {key: more.pop(key) for key in list(more) if key in Case.__dataclass_fields__}
    options = {"r": 4, "lora_alpha": 8, "target_modules": targets, **more}
    return Case(name, model, options, **fields)


LLAMA_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BLOCKS = {
    "target_modules_bd_b": ["q_proj", "up_proj"],
    "target_modules_bd_a": ["o_proj"],
    "nblocks": 2,
    "match_strict": False,
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CONVOLUTIONS = ["conv1", "conv2", "conv3", "pointwise"]

PLAIN = (
    _case("plain", "llama", Q_V),
    _case("every_linear", "llama", "all-linear"),
    _case("alpha_float", "llama", Q_V, lora_alpha=3.7),
    _case("alpha_negative", "llama", Q_V, lora_alpha=-5),
    _case("rslora", "llama", LLAMA_LINEARS, r=6, lora_alpha=7, use_rslora=True),
    _case("rank_over_shape", "llama", ["k_proj"], r=24),
    _case("one_expression", "llama", r".*layers\.1\..*(q|down)_proj"),
    _case(
        "patterns",
        "llama",
        LLAMA_LINEARS,
        rank_pattern={r"layers\.0\..*q_proj": 2, "q_proj": 3, "mlp.up_proj": 6},
        alpha_pattern={r"layers.[01].self_attn.(q|k)_proj": 5, "down_proj": 1.5, ".*_proj": 11},
    ),
    _case(
        "patterns_rslora",
        "llama",
        Q_V,
        use_rslora=True,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"^model.layers.0.self_attn.q_proj": 3, "v_proj": 9},
    ),
    _case("phi3_fused", "phi3", ["qkv_proj", "gate_up_proj", "o_proj"]),
    _case("qwen2", "qwen2", "all-linear"),
    _case("gemma", "gemma", "all-linear"),
    _case("gemma3", "gemma3", "all-linear"),
    _case("opt", "opt", "all-linear"),
    _case("t5", "t5", ["q", "v", "wi", "wo"]),
    _case("bert", "bert", ["query", "value", "dense"]),
    _case("vit", "vit", ["q_proj", "v_proj", "fc1"]),
    _case("gpt_neox", "gpt_neox", ["query_key_value", "dense", "dense_4h_to_h"]),
    _case("llava", "llava", ["q_proj", "v_proj", "linear_1"]),
    _case("mixtral_attention", "mixtral", [*Q_V, "gate"]),
)
CONV1D = (
    _case("gpt2", "gpt2", ["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True),
    _case("gpt2_wrong_fan", "gpt2", ["c_attn", "c_proj", "c_fc"], fan_in_fan_out=False),
    _case("llama_wrong_fan", "llama", [*Q_V, "o_proj"], fan_in_fan_out=True),
)
EMBEDDINGS = (
    _case("embedding", "llama", ["embed_tokens", "q_proj"]),
    _case("head", "llama", ["lm_head", "q_proj"]),
    _case("both_ends", "llama", ["lm_head", "embed_tokens"]),
    _case("no_copies", "llama", ["embed_tokens"], save={"save_embedding_layers": False}),
    _case("neox_ends", "gpt_neox", ["embed_in", "lm_head"]),
    _case("token_rows", "llama", Q_V, trainable_token_indices=[5, 3, 63]),
    _case("token_rows_by_name", "llama", Q_V, trainable_token_indices={"embed_tokens": [7, 2]}),
    _case("resized", "llama", Q_V, vocabulary=70),
    _case("resized_targets", "llama", ["embed_tokens", "lm_head"], vocabulary=70),
    _case(
        "resized_saved", "llama", Q_V, vocabulary=70, modules_to_save=["embed_tokens", "lm_head"]
    ),
)
KERNELS = (
    _case("convolutions", "convnet", [*CONVOLUTIONS, "embed", "out"], exact=False),
    _case("convolutions_rslora", "convnet", CONVOLUTIONS, use_rslora=True, r=3, exact=False),
    _case("attention", "attention", ["mha", "out"], exact=False),
)
EXTRAS = (
    _case("lora_bias", "opt", Q_V, lora_bias=True),
    _case("lora_bias_gpt2", "gpt2", ["c_attn", "c_proj"], lora_bias=True, use_rslora=True),
    _case("bias_all", "opt", Q_V, bias="all"),
    _case("bias_lora_only", "qwen2", Q_V, bias="lora_only"),
    _case("bias_vit", "vit", Q_V, bias="all", modules_to_save=["classifier"]),
    _case("saved_head", "llama", Q_V, modules_to_save=["lm_head", "embed_tokens"]),
    _case("saved_norm", "llama", Q_V, modules_to_save=["norm"]),
    _case("saved_norm_mixtral", "mixtral", Q_V, modules_to_save=["gate"]),
    _case("scorer", "llama", Q_V, trained_on="llama_scorer", task_type="SEQ_CLS"),
    _case(
        "scorer_of_three", "llama", Q_V, trained_on="llama_scorer", task_type="SEQ_CLS", labels=3
    ),
    _case("bert_scorer", "bert_scorer", ["query"], task_type="SEQ_CLS"),
    _case("token_classes", "bert", ["query"], trained_on="bert_tagger", task_type="TOKEN_CLS"),
    _case("blocks", "llama", [*LLAMA_LINEARS], use_bdlora=BLOCKS),
)
DORA = (
    _case("dora", "llama", LLAMA_LINEARS, use_dora=True),
    _case("dora_rslora", "llama", Q_V, use_dora=True, use_rslora=True, alpha_pattern={"q_proj": 3}),
    _case("dora_gpt2", "gpt2", ["c_attn", "c_proj", "c_fc"], use_dora=True, exact=False),
    _case("dora_ends", "llama", ["embed_tokens", "lm_head", "q_proj"], use_dora=True, exact=False),
    _case(
        "dora_convolutions", "convnet", [*CONVOLUTIONS, "embed", "out"], use_dora=True, exact=False
    ),
    _case("dora_vit", "vit", Q_V, use_dora=True, bias="lora_only"),
    _case("dora_phi3", "phi3", ["qkv_proj"], use_dora=True),
)
STACKED = (
    *(
        _case(f"{model}_{name}", model, targets, target_parameters=parameters)
        for model in ("mixtral", "mixtral_square", "qwen3_moe", "gpt_oss", "gpt_oss_square")
        for name, targets, parameters in (
            ("experts", [], EXPERTS),
            ("experts_and_attention", Q_V, EXPERTS),
            ("gate_up", [], EXPERTS[:1]),
            ("down", Q_V, EXPERTS[1:]),
        )
    ),
    _case(
        "llama4_experts",
        "llama4",
        [],
        target_parameters=["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"],
    ),
    _case(
        "llama4_down",
        "llama4",
        Q_V,
        target_parameters=["experts.down_proj"],
        rank_pattern={"experts.down_proj": 2},
    ),
    _case("parameter_2d", "llama", [], target_parameters=["q_proj.weight", "mlp.down_proj.weight"]),
    _case("parameter_2d_gpt2", "gpt2", [], target_parameters=["c_attn.weight"]),
)
TIED = (
    _case("tied_embedding", "qwen2", ["embed_tokens"], peft_merges=False),
    _case("tied_head", "qwen2", ["lm_head"], peft_merges=False),
    _case("tied_both", "qwen2", ["embed_tokens", "lm_head"], peft_merges=False),
    _case("tied_rows", "qwen2", Q_V, trainable_token_indices=[4, 9]),
    _case("tied_saved", "qwen2", Q_V, modules_to_save=["embed_tokens"], peft_merges=False),
    _case("tied_saved_head", "qwen2", Q_V, modules_to_save=["lm_head"], peft_merges=False),
    _case(
        "tied_saved_together",
        "qwen2",
        Q_V,
        modules_to_save=["embed_tokens"],
        ensure_weight_tying=True,
    ),
    _case(
        "tied_targets_together",
        "qwen2",
        ["embed_tokens"],
        ensure_weight_tying=True,
        peft_merges=False,
    ),
    _case("tied_resized", "qwen2", Q_V, vocabulary=70),
    _case("tied_gpt2", "gpt2", ["wte"], peft_merges=False),
    _case("tied_t5", "t5", ["embed_tokens"], peft_merges=False),
    _case("tied_t5_head", "t5", ["lm_head"], peft_merges=False),
    _case("tied_t5_saved", "t5", ["q"], modules_to_save=["lm_head"], peft_merges=False),
    _case("tied_opt", "opt", ["embed_tokens"], peft_merges=False),
    _case("tied_gemma", "gemma3", ["embed_tokens"], peft_merges=False),
    _case("tied_llava", "llava_tied", ["lm_head"], peft_merges=False),
    _case("tied_bert", "bert", ["word_embeddings"], peft_merges=False),
    _case(
        "replicated", "llama", Q_V, layer_replication=[[0, 2], [1, 2], [0, 1]], peft_merges=False
    ),
)
# PEFT rounds the delta to the weight's dtype before it adds: such merges are not exact.
HALF = tuple(
    _case(f"{name}_{kind}", model, targets, dtype=getattr(torch, kind), **more)
    for kind in ("bfloat16", "float16")
    for name, model, targets, more in (
        ("linear", "llama", LLAMA_LINEARS, {}),
        ("conv1d", "gpt2", ["c_attn", "c_proj"], {}),
        ("dora", "llama", Q_V, {"use_dora": True}),
        ("lora_bias", "opt", Q_V, {"lora_bias": True}),
        ("ends", "llama", ["embed_tokens", "lm_head"], {"exact": False}),
        ("experts", "mixtral", Q_V, {"target_parameters": EXPERTS, "exact": False}),
        ("stacked", "gpt_oss", Q_V, {"target_parameters": EXPERTS, "exact": False}),
        ("attention", "attention", ["mha", "out"], {"exact": False}),
        ("kernels", "convnet", ["conv2", "pointwise", "conv3"], {"exact": False}),
        ("dora_conv1d", "gpt2", ["c_attn"], {"use_dora": True, "exact": False}),
        ("blocks", "llama", LLAMA_LINEARS, {"use_bdlora": BLOCKS, "exact": False}),
    )
)
CASES = (*PLAIN, *CONV1D, *EMBEDDINGS, *KERNELS, *EXTRAS, *DORA, *STACKED, *TIED, *HALF)
BY_NAME = {case.name: case for case in CASES}


@cache
def make(case: Case, root: Path) -> Made:
    """Write the case below `root`, as transformers and PEFT save it; once per session."""
    where = root / f"golden-{case.name}"
    base, adapter = where / "base", where / "adapter"
    with quietly():
        save_base(build(case.model, dtype=case.dtype), base)
        tuned = get_peft_model(_trainee(case, base), LoraConfig(**case.options))
        train(tuned)
        tuned.save_pretrained(adapter, **case.save)
        truth = answer(_adapted(case, base, adapter).eval(), case.trained_on or case.model)
    return Made(case, base, adapter, truth)


@contextmanager
def quietly() -> Iterator[None]:
    """PEFT and transformers warn of much that is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def train(model: nn.Module, seed: int = 7) -> None:
    """Random steps in place of training: every trainable tensor moves, none is zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            step = torch.randn_like(parameter)
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.2 * step.abs())
            elif "lora_" in name:
                parameter.copy_(0.2 * step)
            elif parameter.requires_grad:
                parameter.add_(0.1 * step)


def save_base(model: nn.Module, where: Path) -> None:
    """A checkpoint in shards; modules that transformers does not know: one file."""
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(where, max_shard_size="20KB")
    else:
        where.mkdir(parents=True)
        save_file(model.state_dict(), where / "model.safetensors")


def load(name: str, where: Path, dtype: torch.dtype | None = None, **more: Any) -> nn.Module:
    """The model `name` with the weights at `where`, in eval mode, in their own dtype."""
    with quietly():
        torch.manual_seed(3)
        model = MODELS[name]()
        if isinstance(model, PreTrainedModel):
            model = type(model).from_pretrained(where, dtype=dtype or "auto", **more)
        else:
            tensors = load_file(where / "model.safetensors")
            model = model.to(dtype or next(iter(tensors.values())).dtype)
            model.load_state_dict(tensors)
    return model.eval()


def _trainee(case: Case, base: Path, dtype: torch.dtype | None = None) -> nn.Module:
    more = {} if case.labels is None else {"num_labels": case.labels}
    model = load(case.trained_on or case.model, base, dtype, **more)
    if case.vocabulary is not None:
        model.resize_token_embeddings(case.vocabulary)
    return model


def _adapted(case: Case, base: Path, adapter: Path, dtype: torch.dtype | None = None) -> PeftModel:
    model = _trainee(case, base, dtype)
    return PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=dtype is None)


def peft_merged(made: Made, where: Path, dtype: torch.dtype | None = None) -> Tensors:
    """What PEFT's merge_and_unload makes of the files, under checkpoint names.

    In float64 that is the exact result but for the last rounding.
    """
    with quietly():
        merged = _adapted(made.case, made.base, made.adapter, dtype).merge_and_unload()
        if not isinstance(merged, PreTrainedModel):
            return dict(merged.state_dict())
        merged.save_pretrained(where)
    return tensors_of(where)


def tensors_of(where: Path) -> Tensors:
    """Every tensor of a checkpoint."""
    found: Tensors = {}
    for shard in sorted(where.glob("*.safetensors")):
        found.update(load_file(shard))
    return found
