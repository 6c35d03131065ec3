"""What MLX-LM calls the modules of a model, by `model_type`, and which of them it does not have.

Facts, of mlx-lm 0.32.2: the files of `mlx_lm/models/` (each `sanitize` says how the checkpoint's
names become the model's), `MODEL_REMAPPING` of `mlx_lm/utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

MODELS = frozenset(
    {
        *("Klear", "afm7", "afmoe", "apertus", "baichuan_m1", "bailing_moe"),
        *("bailing_moe_linear", "bitnet", "cohere", "cohere2", "dbrx", "deepseek"),
        *("deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5", "ernie4_5_moe"),
        *("exaone", "exaone4", "exaone_moe", "falcon_h1", "gemma", "gemma2", "gemma3"),
        *("gemma3_text", "gemma3n", "gemma4", "gemma4_text", "glm", "glm4", "glm4_moe"),
        *("glm4_moe_lite", "glm_moe_dsa", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss"),
        *("granite", "granitemoe", "granitemoehybrid", "helium", "hunyuan", "hunyuan_v1_dense"),
        *("internlm2", "internlm3", "iquestloopcoder", "jamba", "kimi_k25", "kimi_linear"),
        *("kimi_vl", "laguna", "lfm2-vl", "lfm2", "lfm2_moe", "lille-130m", "llama", "llama4"),
        *("llama4_text", "longcat_flash", "longcat_flash_ngram", "mamba", "mamba2", "mellum"),
        *("mimo", "mimo_v2_flash", "minicpm", "minicpm3", "minimax", "ministral3", "mistral3"),
        *("mixtral", "nanochat", "nemotron-nas", "nemotron", "nemotron_h", "olmo", "olmo2"),
        *("olmo3", "olmoe", "openelm", "phi", "phi3", "phi3small", "phimoe", "phixtral"),
        *("pixtral", "plamo", "plamo2", "qwen", "qwen2", "qwen2_moe", "qwen2_vl", "qwen3"),
        *("qwen3_5", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_vl", "qwen3_vl_moe"),
        *("recurrent_gemma", "rwkv7", "seed_oss", "smollm3", "solar_open", "stablelm"),
        *("starcoder2", "step3p5", "telechat3", "youtu_llm"),
    }
)
"""Every model type that has a file there."""
_REMAPPED: Mapping[str, str] = MappingProxyType(
    {
        "mistral": "llama",
        "llava": "mistral3",
        "phi-msft": "phixtral",
        "falcon_mamba": "mamba",
        "joyai_llm_flash": "deepseek_v3",
        "kimi_k2": "deepseek_v3",
        "qwen2_5_vl": "qwen2_vl",
        "minimax_m2": "minimax",
        "iquestcoder": "llama",
        "gemma4_unified": "gemma4",
    }
)
# The language model alone is read, and stands below this name.
_LANGUAGE_MODEL = "language_model."
_WITH_VISION = frozenset(
    {
        *("gemma3", "gemma3n", "gemma4", "kimi_k25", "kimi_vl", "lfm2-vl", "llama4", "mistral3"),
        *("pixtral", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"),
    }
)
_OTHER_TOWERS = re.compile(
    r"(^|\.)(visual|vision_tower|vision_model|vision_encoder|audio_tower|multi_modal_projector|"
    r"mm_projector|patch_merger|vision_language_adapter|embed_vision|embed_audio)\."
)
_TEXT = ("model.language_model.", "language_model.model.", "language_model.", "model.")
# Multi-head latent attention keeps this projection as two of another layer type, embed_q and
# unembed_out, which are not adapted.
_WITHOUT_KV_B = frozenset(
    {"deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_linear", "longcat_flash"}
)
# What the experts' parent is called there, and whether its experts stand below `switch_mlp`.
_BLOCKS: Mapping[str, str] = MappingProxyType(
    {"mixtral": "block_sparse_moe", "phimoe": "block_sparse_moe"}
)
_AS_EXPERTS = frozenset({"Klear", "afmoe", "dots1", "gpt_oss", "llama4", "llama4_text"})
_BY_NUMBER = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_EXPERT = re.compile(r"(.+)\.experts\.(\d{1,6})\.([^.]+)")
# A parameter that holds all experts of one or two projections.
_STACKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gate_up_proj": ("gate_proj", "up_proj"),
        **{name: (name,) for name in ("gate_proj", "up_proj", "down_proj")},
    }
)
# Beginnings of names there, and in transformers.
_RENAMED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"gpt2": ("model.h.", "transformer.h."), "gpt_neox": ("model.h.", "gpt_neox.layers.")}
)


@dataclass(frozen=True, slots=True)
class MlxModule:
    """A module of MLX-LM's model; `expert` is the place in a switch layer's stack."""

    path: str
    expert: int | None = None


def mlx_type(kinds: Iterable[str]) -> str | None:
    """The file that a base of these model types is built by; None where there is none.

    The first, which is the whole model's, decides.
    """
    first = next(iter(kinds), "")
    found = _REMAPPED.get(first, first)
    return found if found in MODELS else None


def mlx_module(kind: str | None, module: str) -> MlxModule | None:
    """MLX-LM's module for transformers' `module`; None where its model has none.

    `kind` is `mlx_type`'s; None where the base is not known.
    """
    if _OTHER_TOWERS.search(f"{module}."):
        return None
    if kind in _WITHOUT_KV_B and module.endswith(".kv_b_proj"):
        return None
    found = _EXPERT.fullmatch(module)
    if found is None:
        return MlxModule(_path(kind, module))
    block, place, name = found.groups()
    return MlxModule(_path(kind, _switch(kind, block, name)), int(place))


def mlx_paths(kind: str | None, parameter: str) -> Iterator[str]:
    """The modules there that hold one of transformers' parameters: two for gate and up together."""
    module, _, leaf = parameter.rpartition(".")
    names = [module] if leaf == "weight" else []
    names += [f"{module}.0.{name}" for name in _STACKS.get(leaf, ())]
    for name in names:
        found = mlx_module(kind, name)
        if found is not None:
            yield found.path


def transformers_name(kind: str | None, path: str) -> str:
    """The name in transformers of a module that is called otherwise there."""
    there, here = _RENAMED.get(kind or "", ("", ""))
    return here + path.removeprefix(there) if there and path.startswith(there) else path


def _switch(kind: str | None, block: str, name: str) -> str:
    """The switch layer that holds the experts' projections of one name."""
    if kind is not None and kind in _BLOCKS:
        block = f"{block.rpartition('.')[0]}.{_BLOCKS[kind]}"
    stack = "experts" if kind in _AS_EXPERTS else "switch_mlp"
    return f"{block}.{stack}.{_BY_NUMBER.get(name, name)}"


def _path(kind: str | None, module: str) -> str:
    if kind in _WITH_VISION or (kind is None and module.startswith("model.language_model.")):
        return _below_language_model(module)
    there, here = _RENAMED.get(kind or "", ("", ""))
    if here and module.startswith(here):
        return there + module.removeprefix(here)
    return f"model.{module}" if kind is not None and module.startswith("layers.") else module


def _below_language_model(module: str) -> str:
    head = module.rpartition(".")[2]
    if head == "lm_head":
        return f"{_LANGUAGE_MODEL}lm_head"
    rest = next((module.removeprefix(each) for each in _TEXT if module.startswith(each)), module)
    return f"{_LANGUAGE_MODEL}model.{rest}"
