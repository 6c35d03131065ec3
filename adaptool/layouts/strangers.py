"""Adapters whose keys are known and not read: named, with what to do instead."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adaptool.errors import MismatchError
from adaptool.findings import Code
from adaptool.store.adapter_files import AdapterFiles
from adaptool.store.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class _Stranger:
    """Keys that only this kind of file has; `axes`: how many axes their tensors have there."""

    keys: re.Pattern[str]
    what: str
    hint: str
    axes: int = 0

    def knows(self, ref: TensorRef) -> bool:
        """Whether this tensor is of this kind of file."""
        return self.axes in (0, len(ref.shape)) and self.keys.search(ref.name) is not None


_TINKER = "export it with tinker_cookbook.weights (build_lora_adapter), which writes PEFT's layout"
_STRANGERS = (
    _Stranger(
        re.compile(r"^base_model\.model\..*\.experts\.w[123]\.lora_[AB]\.weight$"),
        "is a Tinker archive: the experts' factors are stacked in it",
        _TINKER,
        axes=3,
    ),
    _Stranger(
        re.compile(r"^base_model\.model\.(.+\.)?unembed_tokens\.lora_[AB]\.weight$"),
        "is a Tinker archive: its head is called unembed_tokens",
        _TINKER,
    ),
    _Stranger(
        re.compile(r"\.adapter(\.adapter_[a-z]+)?\.linear_(in|out)\.weight$"),
        "is an adapter of NeMo or Megatron, whose q, k and v are interleaved",
        "export it with Megatron-Bridge (save_hf_adapter), which writes PEFT's layout",
    ),
    _Stranger(
        re.compile(r"\.loras\.[^.]+\.(lora_[AB]|gate)"),
        "is an adapter of the AdapterHub library",
        "load it there and merge it (merge_adapter), or train it with PEFT",
    ),
)


def refuse_stranger(files: AdapterFiles) -> None:
    """MismatchError (exit 4) where a key is of a kind of file that is not read."""
    for stranger in _STRANGERS:
        found = next((ref for ref in files.tensors.values() if stranger.knows(ref)), None)
        if found is not None:
            raise MismatchError(
                stranger.what,
                code=Code.UNSUPPORTED,
                file=files.source.name,
                tensor=found.name,
                hint=stranger.hint,
            )
