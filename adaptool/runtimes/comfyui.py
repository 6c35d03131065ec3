"""ComfyUI.

Facts, of ComfyUI in November 2026: `comfy/lora.py` (names are looked up in a map made of the
model's own keys; a key that is not in it is logged and left out; a module's `.alpha` over its rank
is the scale, 1 where there is none; no metadata and no config is read; magnitudes are called
dora_scale), `comfy/lora_convert.py` (the BFL control layout, whose biases are read),
`comfy/weight_adapter/` (LoRA, LoHa, LoKr, GLoRA, OFT, BOFT).
"""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.model.adapter import Delta
from adaptool.runtimes import checks
from adaptool.runtimes.rules import MERGE, Candidate, Problem, Rule, Runtime, Verdict, all_but

_CONVERT = "adaptool convert ADAPTER OUT --to comfyui"
_OWN = frozenset({"diffusers"})
_READ = all_but("peft", "mlx", "gguf")
# Both names together are how it tells a BFL control file, whose biases it renames and reads.
_CONTROL = frozenset({"img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale"})


def _scaling(candidate: Candidate, _: Delta) -> float | None:
    with_alpha = any(name.endswith(".alpha") for name in candidate.files.tensors)
    is_read = candidate.layout is not None and _READ(candidate.layout)
    return 1.0 if is_read and not with_alpha else None


def _factor_biases(candidate: Candidate) -> Iterator[Problem]:
    if not candidate.files.tensors.keys() >= _CONTROL:
        yield from checks.keys(r"\.lora_B\.bias$", "biases of lora_B")(candidate)


RUNTIME = Runtime(
    title="ComfyUI",
    version="November 2026",
    layouts="names of the original checkpoint, kohya's and, per model, diffusers'",
    reads=_READ,
    mend=_CONVERT,
    unread=Verdict.IGNORED,
    rules=(
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
