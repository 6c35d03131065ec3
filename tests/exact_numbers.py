"""Random numbers whose products and sums float64 holds exactly.

A BLAS adds in the order that its kernel, the shape and the thread count suggest, so two products of
random numbers that are equal on paper differ in their last bits on some machine. Of these numbers
every order gives the same bits: a test may compare products of different shapes bit for bit.

Not for merges: sums of such numbers often lie in the middle of two 16-bit ones, where the last bit
of a scale decides, and where random numbers never lie.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

STEPS = 64  # of one standard deviation: float16 and float32 hold every number exactly


def exact_normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    """Normal numbers in float64, rounded to a power of two: about `scale` / STEPS."""
    step = 2.0 ** math.floor(math.log2(scale)) / STEPS
    return np.asarray(np.round(rng.standard_normal(shape) * (scale / step)) * step)


def drawn(seed: int, *shape: int, scale: float = 0.05) -> Array:
    """Such numbers in float32."""
    values = exact_normal(np.random.default_rng(seed), *shape, scale=scale)
    return np.asarray(values, "float32")
