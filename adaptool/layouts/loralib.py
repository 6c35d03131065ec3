"""microsoft/LoRA's layout: bare `module.lora_A`, `module.lora_B`, and what was trained beside.

A is (r, in), B (out, r), an embedding's (r, vocab) and (dim, r); a MergedLinear holds several
projections, a convolution (r k, in k) and (out k, r k). Neither alpha is stored, nor which
projections are trained, nor what is a convolution.
Source: loralib 0.1.2, layers.py and utils.py (`lora_state_dict`).
"""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.findings import Code, Finding, Severity
from adaptool.layouts import Evidence
from adaptool.layouts.litgpt import is_litgpt
from adaptool.layouts.merged_linear import PARTS, as_plain_pair, trained_parts
from adaptool.layouts.pairs import Pairs, Roles, adapter_of, paired
from adaptool.layouts.plain_deltas import is_embedding, lora_delta
from adaptool.layouts.told_scale import told_scaling
from adaptool.model.adapter import Adapter, Delta, Replaced
from adaptool.model.derived import block_diagonal, reshaped
from adaptool.model.reading import AS_IT_STANDS, Reading
from adaptool.store.adapter_files import AdapterFiles

TITLE = "loralib"
DETECT = "keys `*.lora_A`, `*.lora_B` without `.weight`"
LOSSY = ""
_ENDINGS = {".lora_A": "A", ".lora_B": "B"}
_CONVOLUTION_AXES = 4
# What `bias="all"` and a trained head leave in the file.
_WHOLE = (".bias", ".weight")
_NOT_OURS = (".loras.", "base_model.")


def _sorted(files: AdapterFiles) -> tuple[Pairs, list[Replaced]]:
    """The pairs, and the whole tensors beside them."""
    found = paired(files.tensors, _ENDINGS, _takes)
    if not found.modules:
        return found, []
    whole = [
        ref
        for ref in found.leftover
        if ref.name.endswith(_WHOLE) and not any(word in ref.name for word in ("lora_", *_NOT_OURS))
    ]
    rest = tuple(ref for ref in found.leftover if ref not in whole)
    return Pairs(found.modules, rest), [
        Replaced(ref.name, ref, saved_module=ref.name.endswith(".weight")) for ref in whole
    ]


def _takes(module: str) -> bool:
    return not is_litgpt(module) and not any(word in f"{module}." for word in _NOT_OURS)


def sniff(files: AdapterFiles) -> Evidence:
    """loralib's are bare `lora_A` and `lora_B`; beside them, weights and biases."""
    found, _ = _sorted(files)
    unclaimed = tuple(ref.name for ref in found.leftover)
    claimed = len(files.tensors) - len(unclaimed) if found.modules else 0
    return Evidence(claimed, unclaimed, f"{claimed} keys end with lora_A, lora_B or stand beside")


def decode(files: AdapterFiles, reading: Reading = AS_IT_STANDS) -> Adapter:
    """Read the adapter; InputError (with every other problem) where it contradicts itself."""
    found, whole = _sorted(files)
    guessed = [
        name
        for name, roles in found.modules.items()
        if {"A", "B"} <= roles.keys() and 1 < trained_parts(roles["A"], roles["B"]) < PARTS
    ]
    notes = (_guessed(guessed, files),) if guessed else ()

    def make(name: str, roles: Roles) -> Iterator[Delta]:
        rank = roles["B"].shape[-1] if roles["B"].shape else 1
        kernel = _kernel(name, roles, reading)
        if kernel:
            yield _convolution(name, roles, kernel, told_scaling(files, reading, rank // kernel))
        else:
            yield _delta(name, roles, told_scaling(files, reading, rank))

    return adapter_of(files, reading, found, make, layout="loralib", replaced=whole, findings=notes)


def _delta(module: str, roles: Roles, scaling: float) -> Delta:
    a, b = roles["A"], roles["B"]
    if is_embedding(module):
        return lora_delta(module, {"embedding_A": a, "embedding_B": b}, scaling)
    if trained_parts(a, b) > 1:
        a, b = as_plain_pair(a, b)
    return lora_delta(module, {"A": a, "B": b}, scaling)


def _kernel(module: str, roles: Roles, reading: Reading) -> int:
    """The side of a convolution's square kernel, which only the base tells; 0 for other layers."""
    shape = reading.base.shapes.get(f"{module}.weight", ()) if reading.base is not None else ()
    a, b = roles["A"].shape, roles["B"].shape
    if len(shape) != _CONVOLUTION_AXES or len(a) != 2 or len(b) != 2:
        return 0
    out, inner, side, _ = shape
    fits = (b[0], a[1], shape[3]) == (out * side, inner * side, side) and a[0] == b[1]
    return side if fits and not a[0] % side else 0


def _convolution(module: str, roles: Roles, side: int, scaling: float) -> Delta:
    """B (out k, r k) A (r k, in k), seen as (out, in, k, k), as PEFT's pair of rank r k k.

    An output's k rows of B each make a k-th of its numbers with the same A.
    """
    a, b = roles["A"], roles["B"]
    inner, rank = a.shape[1] // side, a.shape[0] * side
    whole = reshaped(block_diagonal([a] * side), (rank, inner, side, side))
    rows = reshaped(b, (b.shape[0] // side, rank, 1, 1))
    return lora_delta(module, {"A": whole, "B": rows}, scaling)


def _guessed(modules: list[str], files: AdapterFiles) -> Finding:
    message = f"{len(modules)} modules hold two of three projections; taken for q and v"
    hint = "loralib does not store which ones (enable_lora): compare with the training's code"
    return Finding(
        Code.SHAPE_AMBIGUOUS,
        Severity.WARNING,
        message,
        file=files.source.name,
        tensor=modules[0],
        hint=hint,
    )
