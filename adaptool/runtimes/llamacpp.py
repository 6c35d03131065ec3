"""llama.cpp, and what is built on it.

Facts, of llama.cpp in November 2026: `src/llama-adapter.cpp` (only GGUF; pairs of lora_a and
lora_b, norms skipped, anything else an error; tensors must be the base's), `src/llama-adapter.h`
(scale: alpha over the tensor's rank; alpha 0 is scale 1), `convert_lora_to_gguf.py` (which reads
`lora_alpha` alone, and exits at whatever is neither a factor nor a norm).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from adaptool.model.adapter import Delta
from adaptool.runtimes import checks
from adaptool.runtimes.rules import MERGE, Candidate, Problem, Rule, Runtime, Verdict, only

_NORM = re.compile(r"_layernorm|\.norm|_norm\.")
_TO_GGUF = "adaptool convert ADAPTER OUT --to gguf --base BASE"
_AS_LORA = "adaptool convert ADAPTER OUT --to gguf --base BASE --as lora"
_PEFT = frozenset({"peft"})


def _scaling(candidate: Candidate, delta: Delta) -> float | None:
    alpha = checks.config_number(candidate, "lora_alpha")
    return alpha / delta.terms.rank if alpha is not None and delta.terms.rank else None


def _heads(candidate: Candidate) -> list[str]:
    return [delta.module for delta in candidate.deltas if checks.last_name(delta) == "lm_head"]


def _tied_head(candidate: Candidate) -> Iterator[Problem]:
    heads = _heads(candidate)
    if heads and (candidate.base or {}).get("tie_word_embeddings") is True:
        yield Problem("lm_head is adapted, the base has none of its own", tensor=heads[0])


def _perhaps_tied_head(candidate: Candidate) -> Iterator[Problem]:
    heads = _heads(candidate)
    if heads and "tie_word_embeddings" not in (candidate.base or {}):
        message = "lm_head is adapted; the base must have one of its own"
        yield Problem(message, tensor=heads[0])


RUNTIME = Runtime(
    title="llama.cpp",
    version="November 2026",
    layouts="GGUF files",
    reads=only("gguf"),
    mend=_TO_GGUF,
    rules=(
        Rule(
            "rsLoRA, alpha_pattern (by its converter)",
            Verdict.MIS_SCALED,
            checks.scaled(_scaling, "its convert_lora_to_gguf.py reads lora_alpha alone"),
            _TO_GGUF,
            _PEFT,
        ),
        Rule("other tuners", Verdict.REFUSED, checks.other_tuners, _AS_LORA),
        Rule("DoRA", Verdict.REFUSED, checks.magnitudes, MERGE),
        Rule("lora_bias", Verdict.REFUSED, checks.factor_biases, MERGE),
        Rule("biases", Verdict.REFUSED, checks.trained_biases, MERGE),
        Rule(
            "whole tensors",
            Verdict.REFUSED,
            checks.whole_tensors(lambda name: not _NORM.search(name)),
            MERGE,
        ),
        Rule(
            "norms", Verdict.IGNORED, checks.whole_tensors(lambda n: bool(_NORM.search(n))), MERGE
        ),
        Rule("token rows", Verdict.REFUSED, checks.token_rows, MERGE),
        Rule("lm_head of a tied base", Verdict.REFUSED, _tied_head, MERGE),
        Rule("lm_head", Verdict.CONDITIONAL, _perhaps_tied_head, "--base BASE decides it"),
        Rule(
            "layer_replication",
            Verdict.REFUSED,
            checks.switched("layer_replication", "layers of the base are repeated"),
            MERGE,
        ),
        Rule("PiSSA and its like", Verdict.IGNORED, checks.changed_base, MERGE),
        Rule("copies of the embeddings", Verdict.IGNORED, checks.base_copies, MERGE, harmless=True),
    ),
)
