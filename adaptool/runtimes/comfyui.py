"""ComfyUI.

Facts, of ComfyUI in November 2026: `comfy/lora.py` (names are looked up in a map made of the
model's own keys, see `comfyui_names.py`; a key that is not in it is logged and left out; a module's
`.alpha` over its rank is the scale, 1 where there is none; no metadata and no config is read;
magnitudes are called dora_scale), `comfy/lora_convert.py` (the BFL control layout, whose biases are
read), `comfy/weight_adapter/` (LoRA, LoHa, LoKr, GLoRA, OFT, BOFT; `base.py`, weight_decompose:
where dora_scale has one number for each output, the norm that divides it is that of W, not of
W + D).
"""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.model.adapter import Delta
from adaptool.runtimes import checks
from adaptool.runtimes.comfyui_names import BFL_CONTROL, looked_up
from adaptool.runtimes.rules import MERGE, Candidate, Problem, Rule, Runtime, Verdict, only

_CONVERT = "adaptool convert ADAPTER OUT --to comfyui"
_OWN = frozenset({"diffusers"})
_READ = only("comfyui", "diffusers", "kohya", "lycoris", "onetrainer", "bfl", "xlabs")


def _scaling(candidate: Candidate, _: Delta) -> float | None:
    with_alpha = any(name.endswith(".alpha") for name in candidate.files.tensors)
    is_read = candidate.layout is not None and _READ(candidate.layout)
    return 1.0 if is_read and not with_alpha else None


def _factor_biases(candidate: Candidate) -> Iterator[Problem]:
    if not candidate.files.tensors.keys() >= BFL_CONTROL:
        yield from checks.keys(r"\.lora_B\.bias$", "biases of lora_B")(candidate)


def _other_names(candidate: Candidate) -> Iterator[Problem]:
    found = looked_up(candidate.files.tensors, candidate.family, candidate.base_tensors).unread
    if _is_looked_at(candidate) and found:
        message = f"{len(found)} of {len(candidate.files.tensors)} tensors have names that are not "
        yield Problem(message + "in its map of the model", tensor=found[0])


def _unknown_names(candidate: Candidate) -> Iterator[Problem]:
    found = looked_up(candidate.files.tensors, candidate.family, candidate.base_tensors).unsure
    if _is_looked_at(candidate) and found:
        message = f"{len(found)} tensors are of modules that are in no table here; they are read "
        yield Problem(message + "where the checkpoint has modules of these names", tensor=found[0])


def _is_looked_at(candidate: Candidate) -> bool:
    return candidate.layout is None or _READ(candidate.layout)


def _magnitudes_of_outputs(candidate: Candidate) -> Iterator[Problem]:
    """A dora_scale that has one number for each output: its first axis is no 1."""
    names = [
        name
        for name, ref in candidate.files.tensors.items()
        if name.endswith(".dora_scale") and ref.shape and ref.shape[0] != 1
    ]
    if names:
        message = f"{len(names)} magnitudes are divided by the norm of W, not of W + B A"
        yield Problem(message, tensor=names[0])


RUNTIME = Runtime(
    title="ComfyUI",
    version="November 2026",
    layouts="names of the original checkpoint, kohya's and, per model, diffusers'",
    reads=_READ,
    mend=_CONVERT,
    unread=Verdict.IGNORED,
    rules=(
        Rule("names that are not in its map", Verdict.IGNORED, _other_names, _CONVERT),
        Rule(
            "modules of models without a table",
            Verdict.CONDITIONAL,
            _unknown_names,
            "--base CHECKPOINT tells",
        ),
        Rule("DoRA over outputs", Verdict.MIS_SCALED, _magnitudes_of_outputs, MERGE),
        Rule(
            "a scale in the metadata",
            Verdict.MIS_SCALED,
            checks.scaled(_scaling, "it reads tensors called .alpha alone"),
            _CONVERT,
        ),
        Rule(
            "DoRA of PEFT",
            Verdict.IGNORED,
            checks.keys(r"\.lora_magnitude_vector(\.weight)?$", "magnitudes under PEFT's name"),
            _CONVERT,
        ),
        Rule("lora_bias", Verdict.IGNORED, _factor_biases, MERGE),
        Rule("whole tensors", Verdict.IGNORED, checks.whole_tensors(lambda _: True), MERGE, _OWN),
        Rule("biases", Verdict.IGNORED, checks.trained_biases, MERGE, _OWN),
    ),
)
