"""One file per storage scheme of a quantized base; a scheme is found by being here."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import cast

from adaptool.discovery import marked
from adaptool.model.quantizer import Quantizer


@functools.cache
def quantizers() -> Mapping[str, Quantizer]:
    """Every quantizer by name: the modules of this package that declare a SCHEME."""
    return cast("Mapping[str, Quantizer]", marked(__name__, __path__, "SCHEME"))
