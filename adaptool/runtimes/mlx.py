"""MLX-LM.

Facts, of mlx-lm 0.32.2: `mlx_lm/tuner/utils.py` (`load_adapters`: adapter_config.json and
adapters.safetensors; `lora_parameters` must have rank, scale and dropout, and the scale is used as
it is; a tensor that is no lora_a, lora_b or m of the model, or of another shape than the one rank
gives, raises; DoRA on experts raises, and so does any layer but Linear, SwitchLinear, Embedding);
the names of its models' modules stand in `names/mlx_names.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adaptool.model.adapter import Form
from adaptool.names.families import model_types
from adaptool.names.mlx_names import mlx_module, mlx_paths, mlx_type
from adaptool.runtimes import checks
from adaptool.runtimes.rules import MERGE, Candidate, Problem, Rule, Runtime, Verdict, only

_MLX = frozenset({"mlx"})
_TO_MLX = "adaptool convert ADAPTER OUT --to mlx"
_TO_MLX_BASE = "adaptool convert ADAPTER OUT --to mlx --base BASE"
_AS_LORA = "adaptool convert ADAPTER OUT --to mlx --as lora"
NEEDED = ("rank", "scale", "dropout")


def _parameters(candidate: Candidate) -> Mapping[str, Any]:
    found = candidate.config.get("lora_parameters")
    return found if isinstance(found, Mapping) else {}


def _is_full(candidate: Candidate) -> bool:
    return candidate.config.get("fine_tune_type") == "full"


def _incomplete(candidate: Candidate) -> Iterator[Problem]:
    if _is_full(candidate):
        return
    missing = [f"lora_parameters.{name}" for name in NEEDED if name not in _parameters(candidate)]
    missing += [] if "num_layers" in candidate.config else ["num_layers"]
    for field in missing:
        yield Problem("needed, and not in the config", field=field)


def _alpha(candidate: Candidate) -> Iterator[Problem]:
    parameters = _parameters(candidate)
    if "alpha" in parameters and "scale" in parameters:
        message = f"alpha is {parameters['alpha']}, only scale {parameters['scale']} counts"
        yield Problem(message, field="lora_parameters.alpha")


def _other_ranks(candidate: Candidate) -> Iterator[Problem]:
    rank = _parameters(candidate).get("rank")
    others = [delta for delta in candidate.deltas if delta.terms.rank not in (None, rank)]
    if others and rank is not None:
        message = f"{len(others)} modules have another rank than {rank}"
        yield Problem(message, tensor=others[0].module, field="lora_parameters.rank")


def _dora_experts(candidate: Candidate) -> Iterator[Problem]:
    names = [
        delta.module
        for delta in candidate.deltas
        if delta.terms.form is Form.EXPERTS and "magnitude" in delta.roles
    ]
    if names:
        yield Problem(f"{len(names)} stacks of experts are DoRA", tensor=names[0])


def _whole(candidate: Candidate) -> Iterator[Problem]:
    if not _is_full(candidate):
        yield from checks.whole_tensors(lambda _: True)(candidate)


def _no_model(candidate: Candidate) -> Iterator[Problem]:
    types = model_types(candidate.base)
    if types and mlx_type(types) is None:
        yield Problem(f"it has no model of type {types[0]}")


def _no_module(candidate: Candidate) -> Iterator[Problem]:
    """Modules that the base's model lacks there; without a base, those that every model lacks."""
    modules = _modules(candidate)
    kind = mlx_type(model_types(candidate.base))
    if candidate.base_tensors and kind is not None:
        there = {path for name in candidate.base_tensors for path in mlx_paths(kind, name)}
        there |= {"lm_head", "language_model.lm_head"}
        lacking = [module for module in modules if module not in there]
    else:
        lacking = [module for module in modules if _is_nowhere(module)]
    if lacking:
        message = f"{len(lacking)} of {len(modules)} modules are none of the model's there"
        yield Problem(message, tensor=lacking[0])


def _modules(candidate: Candidate) -> list[str]:
    names = [name.rpartition(".") for name in candidate.files.tensors]
    return sorted({module for module, _, leaf in names if leaf in ("lora_a", "lora_b")})


def _is_nowhere(module: str) -> bool:
    return module.startswith("model.language_model.") or mlx_module(None, module) is None


def _perhaps_no_module(candidate: Candidate) -> Iterator[Problem]:
    names = [module for module in _modules(candidate) if module.endswith(".kv_b_proj")]
    if names and candidate.base is None:
        message = "kv_b_proj is adapted, which its models of DeepSeek V3 and the like do not have"
        yield Problem(message, tensor=names[0])


RUNTIME = Runtime(
    title="MLX-LM",
    version="0.32.2",
    layouts="MLX directories",
    reads=only("mlx"),
    mend=_TO_MLX,
    rules=(
        Rule("no adapter_config.json", Verdict.REFUSED, checks.config_inside, _TO_MLX, _MLX),
        Rule(
            "other file names",
            Verdict.REFUSED,
            checks.named_otherwise("adapters.safetensors"),
            _TO_MLX,
            _MLX,
        ),
        Rule(
            "rank, scale, dropout or num_layers missing",
            Verdict.REFUSED,
            _incomplete,
            _TO_MLX,
            _MLX,
        ),
        Rule("ranks that differ", Verdict.REFUSED, _other_ranks, _TO_MLX, _MLX),
        Rule("alpha beside scale", Verdict.IGNORED, _alpha, _TO_MLX, _MLX, harmless=True),
        Rule("models that it lacks", Verdict.REFUSED, _no_model, "serve it elsewhere"),
        Rule("modules that its model lacks", Verdict.REFUSED, _no_module, _TO_MLX_BASE, _MLX),
        Rule("kv_b_proj", Verdict.CONDITIONAL, _perhaps_no_module, "--base BASE decides it", _MLX),
        Rule("other tuners", Verdict.REFUSED, checks.other_tuners, _AS_LORA),
        Rule("DoRA on experts", Verdict.REFUSED, _dora_experts, MERGE),
        Rule("lora_bias", Verdict.REFUSED, checks.factor_biases, MERGE),
        Rule("biases", Verdict.REFUSED, checks.trained_biases, MERGE),
        Rule("whole tensors", Verdict.REFUSED, _whole, MERGE),
        Rule("token rows", Verdict.REFUSED, checks.token_rows, MERGE),
        Rule(
            "convolutions", Verdict.REFUSED, checks.of_form(Form.CONVOLUTION, "convolutions"), MERGE
        ),
        Rule(
            "layer_replication",
            Verdict.REFUSED,
            checks.switched("layer_replication", "layers of the base are repeated"),
            MERGE,
        ),
        Rule("PiSSA and its like", Verdict.IGNORED, checks.changed_base, MERGE),
        Rule("copies of the embeddings", Verdict.REFUSED, checks.base_copies, MERGE),
    ),
)
