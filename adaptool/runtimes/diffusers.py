"""diffusers.

Facts, of diffusers 0.42.1: `loaders/lora_pipeline.py` (`dora_scale` is filtered out with a warning
in every pipeline; every other name must hold "lora"; keys without the component's prefix are left
alone), `loaders/lora_conversion_utils.py` (the converter of SD and SDXL raises on what is no plain
LoRA; what the others convert stands in `diffusers_names.py`), `utils/peft_utils.py` (without alphas
or metadata, alpha is the rank), `loaders/lora_base.py` (under transformers 5 `text_model.` is taken
off the keys of text encoders, and not off the metadata's targets, which then match nothing).
"""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.runtimes import checks
from adaptool.runtimes.diffusers_names import Fate, fate_of
from adaptool.runtimes.rules import MERGE, Candidate, Problem, Rule, Runtime, Verdict, only

_OWN = frozenset({"diffusers"})
_KOHYA = frozenset({"kohya", "lycoris"})
_CONVERT = "adaptool convert ADAPTER OUT --to diffusers"
_AS_LORA = "adaptool convert ADAPTER OUT --to diffusers --as lora"
_READ = only("diffusers", "kohya", "lycoris", "comfyui", "onetrainer", "bfl", "xlabs")


def _left_alone(candidate: Candidate) -> Iterator[Problem]:
    found = _fate(candidate).lost
    if found:
        message = f"{len(found)} of {len(candidate.files.tensors)} tensors have names that its "
        yield Problem(message + "pipeline does not convert", tensor=found[0])


def _not_converted(candidate: Candidate) -> Iterator[Problem]:
    found = _fate(candidate).refused
    if found:
        message = f"{len(found)} of {len(candidate.files.tensors)} tensors have names that its "
        yield Problem(message + "converter raises on", tensor=found[0])


def _fate(candidate: Candidate) -> Fate:
    if candidate.layout is not None and not _READ(candidate.layout):
        return Fate((), ())
    return fate_of(candidate.files.tensors, candidate.family)


def _text_model_targets(candidate: Candidate) -> Iterator[Problem]:
    """Targets of text encoders in the metadata by transformers 4's names."""
    for key, targets in candidate.config.items():
        encoder = key.startswith("text_encoder") and key.endswith(".target_modules")
        names = targets if isinstance(targets, list) else [targets]
        named = [name for name in names if str(name).startswith("text_model.")]
        if encoder and named:
            message = f"{len(named)} targets begin with text_model., which transformers 5 lacks"
            yield Problem(message, field=key)


RUNTIME = Runtime(
    title="diffusers",
    version="0.42.1",
    layouts="its own keys (unet., transformer.) and, per pipeline, kohya's and ComfyUI's",
    reads=_READ,
    mend=_CONVERT,
    unread=Verdict.IGNORED,
    rules=(
        Rule("names that it does not convert", Verdict.IGNORED, _left_alone, _CONVERT),
        Rule("names that its converter raises on", Verdict.REFUSED, _not_converted, _CONVERT),
        Rule("text_model. in the metadata", Verdict.REFUSED, _text_model_targets, _CONVERT),
        Rule(
            "DoRA of kohya and LyCORIS",
            Verdict.IGNORED,
            checks.keys(r"(^|\.)dora_scale$", "magnitudes are filtered out"),
            f"{_CONVERT}, or {MERGE}",
        ),
        Rule(
            "LoHa, Tucker factors",
            Verdict.REFUSED,
            checks.keys(r"\.(lora_mid\.weight|hada_\w+)$", "tensors are no factors of a LoRA"),
            f"{_AS_LORA}, or {MERGE}",
        ),
        Rule(
            "full differences",
            Verdict.REFUSED,
            checks.keys(r"\.(diff|diff_b|w_norm|b_norm)$", "tensors are differences of the base's"),
            f"{_AS_LORA}, or {MERGE}",
            _KOHYA,
        ),
        Rule(
            "LoKr",
            Verdict.CONDITIONAL,
            checks.keys(r"\.lokr_\w+$", "tensors of LoKr, read for Flux 2 and Z-Image only"),
            _AS_LORA,
        ),
        Rule("whole tensors", Verdict.REFUSED, checks.whole_tensors(lambda _: True), MERGE, _OWN),
        Rule("biases", Verdict.REFUSED, checks.trained_biases, MERGE, _OWN),
    ),
)
