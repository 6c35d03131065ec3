"""diffusers.

Facts, of diffusers 0.42.1: `loaders/lora_pipeline.py` (`dora_scale` is filtered out with a warning
in every pipeline; every other name must hold "lora"; keys without the component's prefix are left
alone), `loaders/lora_conversion_utils.py` (the converter of SD and SDXL raises on what is no plain
LoRA; Flux' converter names the layers outside the blocks without their prefix, so that they are
left alone; SD3 has none), `utils/peft_utils.py` (without alphas or metadata, alpha is the rank).
"""

from __future__ import annotations

from adaptool.runtimes import checks
from adaptool.runtimes.rules import MERGE, Rule, Runtime, Verdict, all_but

_OWN = frozenset({"diffusers"})
_KOHYA = frozenset({"kohya", "lycoris"})
_CONVERT = "adaptool convert ADAPTER OUT --to diffusers"
_AS_LORA = "adaptool convert ADAPTER OUT --to diffusers --as lora"
_OUTSIDE_BLOCKS = r"lora_unet_(img_in|txt_in|time_in_|vector_in_|guidance_in_|final_layer_)"

RUNTIME = Runtime(
    title="diffusers",
    version="0.42.1",
    layouts="its own keys (unet., transformer.) and, per pipeline, kohya's and ComfyUI's",
    reads=all_but("peft", "mlx", "gguf"),
    mend=_CONVERT,
    unread=Verdict.IGNORED,
    rules=(
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
        Rule(
            "Flux.1 layers outside the blocks",
            Verdict.IGNORED,
            checks.keys(_OUTSIDE_BLOCKS, "tensors of layers outside Flux.1's blocks", start=True),
            _CONVERT,
            _KOHYA,
        ),
        Rule(
            "SD3 under kohya's names",
            Verdict.IGNORED,
            checks.keys(
                r"lora_unet_joint_blocks_", "tensors of SD3 under kohya's names", start=True
            ),
            _CONVERT,
            _KOHYA,
        ),
        Rule("whole tensors", Verdict.REFUSED, checks.whole_tensors(lambda _: True), MERGE, _OWN),
        Rule("biases", Verdict.REFUSED, checks.trained_biases, MERGE, _OWN),
    ),
)
