"""The activation functions that a PEFT config may name. Source: transformers 5.23, `ACT2FN`.

Several names are one function: they differ in how it is computed, or in constants that are rounded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Activation = Callable[[torch.Tensor], torch.Tensor]

_PLAIN: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        "gelu": ("gelu", {}),
        "gelu_python": ("gelu", {}),
        "gelu_pytorch_tanh": ("gelu", {"approximate": "tanh"}),
        "gelu_python_tanh": ("gelu", {"approximate": "tanh"}),
        "gelu_new": ("gelu", {"approximate": "tanh"}),
        "gelu_accurate": ("gelu", {"approximate": "tanh"}),
        "hardswish": ("hardswish", {}),
        "leaky_relu": ("leaky_relu", {"negative_slope": 0.01}),
        "mish": ("mish", {}),
        "prelu": ("leaky_relu", {"negative_slope": 0.25}),  # its slope is not trained
        "relu": ("relu", {}),
        "relu6": ("relu6", {}),
        "silu": ("silu", {}),
        "swish": ("silu", {}),
    }
)
"""Name -> torch's function and its arguments."""


def _clipped(values: torch.Tensor) -> torch.Tensor:
    return activation("gelu")(values).clip(-10, 10)


def _fast(values: torch.Tensor) -> torch.Tensor:
    inside = values * 0.7978845608 * (1.0 + 0.044715 * values * values)
    return 0.5 * values * (1.0 + inside.tanh())


def _quick(values: torch.Tensor) -> torch.Tensor:
    return values * (1.702 * values).sigmoid()


def _laplace(values: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1.0 + ((values - 0.707107) / (0.282095 * math.sqrt(2.0))).erf())


def _squared(values: torch.Tensor) -> torch.Tensor:
    return values.relu().square()


def _root_softplus(values: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.softplus(values).sqrt()


def _linear(values: torch.Tensor) -> torch.Tensor:
    return values


def _sigmoid(values: torch.Tensor) -> torch.Tensor:
    return values.sigmoid()


def _tanh(values: torch.Tensor) -> torch.Tensor:
    return values.tanh()


_OWN: Mapping[str, Activation] = MappingProxyType(
    {
        "gelu_10": _clipped,
        "gelu_fast": _fast,
        "laplace": _laplace,
        "linear": _linear,
        "quick_gelu": _quick,
        "relu2": _squared,
        "sigmoid": _sigmoid,
        "sqrtsoftplus": _root_softplus,
        "tanh": _tanh,
    }
)
NAMES = tuple(sorted({*_PLAIN, *_OWN}))


def activation(name: str) -> Activation:
    """The function of that name, one of `NAMES`; it gives a tensor of its own or its argument."""
    import torch

    if name in _OWN:
        return _OWN[name]
    function, arguments = _PLAIN[name]
    found: Any = getattr(torch.nn.functional, function)
    return functools.partial(found, **arguments)
