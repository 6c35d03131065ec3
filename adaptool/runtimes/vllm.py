"""vLLM.

Facts, of vLLM 0.33.0: `vllm/lora/peft_helper.py` (what of adapter_config.json is read and
refused), `lora_model.py` (files and keys), `lora_weights.py` (scaling), `config/lora.py` (ranks).
Scaling follows PEFT there, patterns and rsLoRA included; earlier releases ignored the patterns.
A module whose name fits nothing in the model is an error for some models, and without effect for
others (vllm-project/vllm#34186). The text model of a vision-language model stands below
`language_model`; which beginnings of names are mapped to that is each model's `hf_to_vllm_mapper`
(`vllm/model_executor/models/`).
"""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.model.adapter import Form
from adaptool.runtimes import checks
from adaptool.runtimes.rules import MERGE, Candidate, Problem, Rule, Runtime, Verdict, only

DEFAULT_RANK = 16
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that --max-lora-rank takes."""
# Full tensors that a classification model takes, one module of them.
CLASSIFIERS = frozenset({"classifier", "score"})
# Initialisations that its check lets pass, though one of them (LoRA-GA) changes the base.
INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
# Vision-language models that map a text model's names, and some of those that do not.
MAPPED = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "keye", "dots_ocr"})
UNMAPPED = frozenset(
    {
        *("llava", "llava_next", "llava_onevision", "gemma3", "mistral3", "paligemma"),
        *("aya_vision", "internvl"),
    }
)
_PEFT = frozenset({"peft"})
_TO_PEFT = "adaptool convert ADAPTER OUT --to peft"
_TO_PEFT_BASE = "adaptool convert ADAPTER OUT --to peft --base BASE"
_TO_LORA = "adaptool convert ADAPTER OUT --to lora"


def _too_high(candidate: Candidate) -> Iterator[Problem]:
    highest = max(checks.ranks(candidate), default=0)
    if highest > RANKS[-1]:
        mend = f"adaptool resize ADAPTER --rank {RANKS[-1]}"
        yield Problem(f"rank {highest}, at most {RANKS[-1]} is allowed", field="r", mend=mend)


def _above_default(candidate: Candidate) -> Iterator[Problem]:
    highest = max(checks.ranks(candidate), default=0)
    if DEFAULT_RANK < highest <= RANKS[-1]:
        least = next(rank for rank in RANKS if rank >= highest)
        message = f"rank {highest} needs --max-lora-rank {least}, the default is {DEFAULT_RANK}"
        yield Problem(message, field="r")


def _is_classifier(parameter: str) -> bool:
    return parameter.rpartition(".")[0].rpartition(".")[2] in CLASSIFIERS


def _two_classifiers(candidate: Candidate) -> Iterator[Problem]:
    modules = {item.parameter.rpartition(".")[0] for item in candidate.replaced}
    found = sorted(module for module in modules if _is_classifier(f"{module}.weight"))
    if len(found) > 1:
        yield Problem(f"{len(found)} classification heads: {', '.join(found)}", tensor=found[0])


def _saved_by_config(candidate: Candidate) -> Iterator[Problem]:
    """Names in the config count, whether or not the file holds their tensors."""
    saved = candidate.config.get("modules_to_save")
    others = sorted(set(saved) - CLASSIFIERS) if isinstance(saved, list) else []
    if others:
        yield Problem(f"{', '.join(map(str, others))}", field="modules_to_save")


def _saved_unnamed(candidate: Candidate) -> Iterator[Problem]:
    if not any(_saved_by_config(candidate)):
        yield from checks.whole_tensors(lambda name: not _is_classifier(name))(candidate)


def _unknown_init(candidate: Candidate) -> Iterator[Problem]:
    init = candidate.config.get("init_lora_weights")
    if isinstance(init, str) and not init.lower().startswith(INITS):
        yield Problem(
            f"initialised by {init}, which may change the base", field="init_lora_weights"
        )


def _passed_init(candidate: Candidate) -> Iterator[Problem]:
    if not any(_unknown_init(candidate)):
        yield from checks.changed_base(candidate)


def _packing(candidate: Candidate) -> Iterator[Problem]:
    if candidate.config.get("lora_B_layout") == "grouped_by_expert":
        yield Problem("the packing of the stacked experts is Unsloth's", field="lora_B_layout")


def _text_names(candidate: Candidate) -> list[str]:
    """Modules that are named as in a text model, where the base has a vision model beside it."""
    base = candidate.base or {}
    if "vision_config" not in base or base.get("model_type") in MAPPED:
        return []
    names = [delta.module for delta in candidate.deltas]
    return [name for name in names if name.startswith(("model.layers.", "layers."))]


def _of_text_model(candidate: Candidate) -> Iterator[Problem]:
    names = _text_names(candidate)
    if names and (candidate.base or {}).get("model_type") in UNMAPPED:
        message = f"{len(names)} modules are named as in a text model, the base has them below "
        yield Problem(message + "language_model", tensor=names[0])


def _perhaps_of_text_model(candidate: Candidate) -> Iterator[Problem]:
    names = _text_names(candidate)
    if names and (candidate.base or {}).get("model_type") not in UNMAPPED:
        message = f"{len(names)} modules are named as in a text model, the base has a vision model"
        yield Problem(message, tensor=names[0])


RUNTIME = Runtime(
    title="vLLM",
    version="0.33.0",
    layouts="PEFT directories",
    reads=only("peft"),
    mend=_TO_PEFT,
    untied=Verdict.REFUSED,
    rules=(
        Rule("no adapter_config.json", Verdict.REFUSED, checks.config_inside, _TO_PEFT, _PEFT),
        Rule(
            "other file names",
            Verdict.REFUSED,
            checks.named_otherwise("adapter_model.safetensors"),
            _TO_PEFT,
            _PEFT,
        ),
        Rule(
            "r, lora_alpha or target_modules missing",
            Verdict.REFUSED,
            checks.lacking("r", "lora_alpha", "target_modules"),
            _TO_PEFT,
            _PEFT,
        ),
        Rule(
            "adapter names in keys",
            Verdict.REFUSED,
            checks.keys(r"\.lora_[AB]\.(?!(weight|bias)$)", "keys name the adapter"),
            _TO_PEFT,
            _PEFT,
        ),
        Rule("a text model's names", Verdict.IGNORED, _of_text_model, _TO_PEFT_BASE),
        Rule(
            "a text model's names, perhaps",
            Verdict.CONDITIONAL,
            _perhaps_of_text_model,
            f"{_TO_PEFT_BASE} gives them the base's names",
        ),
        Rule("other tuners", Verdict.REFUSED, checks.other_tuners, _TO_LORA),
        Rule("DoRA", Verdict.REFUSED, checks.magnitudes, MERGE),
        Rule("lora_bias", Verdict.REFUSED, checks.factor_biases, MERGE),
        Rule("biases", Verdict.REFUSED, checks.trained_biases, MERGE),
        Rule("modules_to_save", Verdict.REFUSED, _saved_by_config, MERGE),
        Rule("whole tensors but one classifier", Verdict.REFUSED, _saved_unnamed, MERGE),
        Rule("several classifiers", Verdict.REFUSED, _two_classifiers, MERGE),
        Rule("token rows", Verdict.REFUSED, checks.token_rows, MERGE),
        Rule(
            "aLoRA",
            Verdict.REFUSED,
            checks.switched("alora_invocation_tokens", "an activated LoRA"),
            "serve it with a runtime that knows activated LoRA, such as llama.cpp",
        ),
        Rule(
            "layer_replication",
            Verdict.REFUSED,
            checks.switched("layer_replication", "layers of the base are repeated"),
            MERGE,
        ),
        Rule(
            "BD-LoRA", Verdict.REFUSED, checks.switched("use_bdlora", "factors are blocks"), MERGE
        ),
        Rule(
            "QALoRA",
            Verdict.REFUSED,
            checks.switched("use_qalora", "inputs are pooled"),
            "train it again without use_qalora",
        ),
        Rule("PiSSA, OLoRA, CorDA, LoftQ", Verdict.REFUSED, _unknown_init, MERGE),
        Rule("LoRA-GA's change of the base", Verdict.IGNORED, _passed_init, MERGE),
        Rule("ranks above 512", Verdict.REFUSED, _too_high, MERGE),
        Rule(
            "ranks above 16",
            Verdict.CONDITIONAL,
            _above_default,
            "start it with that flag, or adaptool resize ADAPTER --rank 16",
        ),
        Rule(
            "convolutions", Verdict.REFUSED, checks.of_form(Form.CONVOLUTION, "convolutions"), MERGE
        ),
        Rule("Unsloth's expert packing", Verdict.IGNORED, _packing, MERGE),
        Rule(
            "stacked experts",
            Verdict.CONDITIONAL,
            checks.of_form(Form.EXPERTS, "parameters of stacked experts"),
            "where mixed expert formats are enabled, request it with is_3d_lora_weight=true",
        ),
        Rule(
            "embed_tokens, lm_head",
            Verdict.CONDITIONAL,
            checks.targeting("embed_tokens", "lm_head"),
            "check that the model's class lists it in embedding_modules, with the same vocabulary",
        ),
        Rule("copies of the embeddings", Verdict.IGNORED, checks.base_copies, MERGE, harmless=True),
    ),
)
