"""SGLang.

Facts, of SGLang 0.5.23: `sglang/srt/lora/lora_config.py` (fields read: r, lora_alpha,
target_modules, use_dora; added_tokens.json), `lora.py` (one scaling, lora_alpha / r, for every
module: sgl-project/sglang#40835), `lora_manager.py` (what is refused), `mem_pool.py` (a module's
rank must be the config's r; names that fit no target module raise), `utils.py` (target modules).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from adaptool.errors import InputError
from adaptool.model.adapter import Delta, Form
from adaptool.runtimes import checks
from adaptool.runtimes.rules import MERGE, Candidate, Problem, Rule, Runtime, Verdict, only
from adaptool.store.documents import read_json_object

# Only keys with a layer's number, and the two embeddings, are looked at.
_LAYER = re.compile(r"layers\.(\d+)\.")
_EMBEDDINGS = ("embed_tokens", "lm_head")
_NAMES = {
    "embed_tokens": ("embed_tokens", "vocab_emb", "embeddings", "word_embeddings"),
    "lm_head": ("lm_head", "output", "unembed_tokens"),
}
_ADDED = "added_tokens.json"
_LARGEST = 16 * 1024 * 1024
_PEFT = frozenset({"peft"})
_TO_PEFT = "adaptool convert ADAPTER OUT --to peft"
_TO_LORA = "adaptool convert ADAPTER OUT --to lora"
_BAKE = "adaptool convert ADAPTER OUT --to peft --bake-scale"


def _scaling(candidate: Candidate, _: Delta) -> float | None:
    alpha = checks.config_number(candidate, "lora_alpha")
    rank = checks.config_number(candidate, "r")
    return alpha / rank if alpha is not None and rank else None


def _other_ranks(candidate: Candidate) -> Iterator[Problem]:
    rank = checks.config_number(candidate, "r")
    found = [delta for delta in candidate.deltas if delta.terms.rank not in (None, rank)]
    if found and rank is not None:
        one = min(checks.ranks(candidate))
        message = f"{len(found)} modules have another rank than r = {rank:g}"
        mend = f"adaptool resize ADAPTER --rank {one}, or {MERGE}"
        yield Problem(message, tensor=found[0].module, field="rank_pattern", mend=mend)


def _pattern_targets(candidate: Candidate) -> Iterator[Problem]:
    targets = candidate.config.get("target_modules")
    if isinstance(targets, str) and targets not in ("all-linear", "all"):
        yield Problem("a regular expression, a list of names is needed", field="target_modules")
    elif targets is None and "target_modules" in candidate.config:
        yield Problem("null, a list of names is needed", field="target_modules")


def _targets(candidate: Candidate) -> frozenset[str]:
    targets = candidate.config.get("target_modules")
    listed = targets if isinstance(targets, list) else [targets]
    return frozenset(str(name).rpartition(".")[2] for name in listed)


def _is_targeted(candidate: Candidate, embedding: str) -> bool:
    return bool(_targets(candidate) & {*_NAMES[embedding], "all-linear", "all"})


def _embedding_of(module: str) -> str | None:
    return next((name for name in _EMBEDDINGS if name in module), None)


def _untargeted_embeddings(candidate: Candidate) -> Iterator[Problem]:
    names = [
        delta.module
        for delta in candidate.deltas
        if (embedding := _embedding_of(delta.module)) is not None
        and not _LAYER.search(delta.parameter)
        and not _is_targeted(candidate, embedding)
    ]
    if names:
        message = f"{checks.last_names(names)} is not in target_modules"
        yield Problem(message, tensor=names[0], field="target_modules")


def _outside_layers(candidate: Candidate) -> Iterator[Problem]:
    names = [
        delta.module
        for delta in candidate.deltas
        if not _LAYER.search(delta.parameter) and _embedding_of(delta.module) is None
    ]
    if names:
        message = f"{len(names)} modules whose names hold no layers.N."
        yield Problem(message, tensor=names[0])


def _incomplete_attention(candidate: Candidate) -> Iterator[Problem]:
    """q, k and v are stacked by starting at q, and v is taken to be there."""
    by_block: dict[str, set[str]] = defaultdict(set)
    for delta in candidate.deltas:
        block, _, name = delta.module.rpartition(".")
        if _LAYER.search(delta.parameter):
            by_block[block].add(name)
    for block, names in by_block.items():
        found = names & {"q_proj", "k_proj", "v_proj"}
        if found and not {"q_proj", "v_proj"} <= found:
            message = f"{', '.join(sorted(found))} without the rest of q_proj and v_proj"
            yield Problem(message, tensor=block, field="target_modules")
            return


def _added_tokens(candidate: Candidate) -> tuple[int, int | None]:
    """How many tokens are added beyond the base's vocabulary, and that size where it is known."""
    path = next((path for path in candidate.files.companions if path.name == _ADDED), None)
    size = _vocabulary(candidate.base)
    if path is None:
        return 0, size
    try:
        tokens = read_json_object(path, limit_bytes=_LARGEST, what=_ADDED, too_large=InputError)
    except InputError:
        # It warns of such a file and goes on as if there were none.
        return 0, size
    indices = [index for index in tokens.values() if isinstance(index, int)]
    return sum(size is None or index >= size for index in indices), size


def _vocabulary(base: Mapping[str, Any] | None) -> int | None:
    size = (base or {}).get("vocab_size")
    return size if isinstance(size, int) else None


def _new_tokens(candidate: Candidate) -> Iterator[Problem]:
    count, size = _added_tokens(candidate)
    if count and size is not None:
        yield Problem(f"{_ADDED} adds {count} tokens to the base's vocabulary of {size}")


def _perhaps_new_tokens(candidate: Candidate) -> Iterator[Problem]:
    count, size = _added_tokens(candidate)
    if count and size is None:
        message = f"{count} tokens of {_ADDED} must lie inside the base's vocabulary"
        yield Problem(message)


RUNTIME = Runtime(
    title="SGLang",
    version="0.5.23",
    layouts="PEFT directories",
    reads=only("peft"),
    mend=_TO_PEFT,
    rules=(
        Rule("no adapter_config.json", Verdict.REFUSED, checks.config_inside, _TO_PEFT, _PEFT),
        Rule(
            "r, lora_alpha or target_modules missing",
            Verdict.REFUSED,
            checks.lacking("r", "lora_alpha", "target_modules"),
            _TO_PEFT,
            _PEFT,
        ),
        Rule("target_modules as a pattern", Verdict.REFUSED, _pattern_targets, _TO_PEFT, _PEFT),
        Rule("other tuners", Verdict.REFUSED, checks.other_tuners, _TO_LORA),
        Rule("DoRA", Verdict.REFUSED, checks.magnitudes, MERGE),
        Rule("lora_bias", Verdict.REFUSED, checks.factor_biases, MERGE),
        Rule("biases", Verdict.REFUSED, checks.trained_biases, MERGE),
        Rule("tokens added", Verdict.REFUSED, _new_tokens, MERGE),
        Rule(
            "an added_tokens.json",
            Verdict.CONDITIONAL,
            _perhaps_new_tokens,
            "--base BASE decides it; remove the file where it is only the base's",
        ),
        Rule("ranks that differ", Verdict.REFUSED, _other_ranks, MERGE, _PEFT),
        Rule(
            "rsLoRA, alpha_pattern",
            Verdict.MIS_SCALED,
            checks.scaled(_scaling, "it takes lora_alpha / r for all"),
            _BAKE,
            _PEFT,
        ),
        Rule("q_proj or v_proj alone", Verdict.REFUSED, _incomplete_attention, MERGE),
        Rule(
            "stacked experts",
            Verdict.REFUSED,
            checks.of_form(Form.EXPERTS, "parameters of stacked experts"),
            MERGE,
        ),
        Rule(
            "layer_replication",
            Verdict.REFUSED,
            checks.switched("layer_replication", "layers of the base are repeated"),
            MERGE,
        ),
        Rule(
            "whole tensors of layers",
            Verdict.REFUSED,
            checks.whole_tensors(lambda name: bool(_LAYER.search(name)), "tensors of layers"),
            MERGE,
        ),
        Rule(
            "other whole tensors",
            Verdict.IGNORED,
            checks.whole_tensors(lambda name: not _LAYER.search(name)),
            MERGE,
        ),
        Rule("token rows", Verdict.IGNORED, checks.token_rows, MERGE),
        Rule("embeddings not targeted", Verdict.IGNORED, _untargeted_embeddings, MERGE, _PEFT),
        Rule("modules outside layers.N.", Verdict.IGNORED, _outside_layers, MERGE),
        Rule(
            "aLoRA",
            Verdict.IGNORED,
            checks.switched("alora_invocation_tokens", "it would act on every token"),
            "serve it with a runtime that knows activated LoRA, such as llama.cpp",
        ),
        Rule("PiSSA and its like", Verdict.IGNORED, checks.changed_base, MERGE),
        Rule("copies of the embeddings", Verdict.IGNORED, checks.base_copies, MERGE, harmless=True),
    ),
)
