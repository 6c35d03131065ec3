"""How much a hostile header may make us read and remember."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on one safetensors header; bytes and counts.

    The header's length is the format's own cap. A million tensors take 74 MB of header and about
    1.4 GB to parse; the largest mixtures of experts have a tenth of that.
    """

    header_bytes: int = 100_000_000
    tensors: int = 1_000_000
    name_bytes: int = 4096
    dimensions: int = 32
