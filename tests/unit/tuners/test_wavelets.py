"""The wavelets' numbers keep to what defines them, and the inverse transform to its definition."""

from __future__ import annotations

import math

import pytest
import torch

from adaptool.tuners.wavelets import scaling_filters, synthesis, wavelet_filter

ORTHONORMAL = [name for name in scaling_filters() if name != "coif4"]


def _moment(taps: tuple[float, ...], power: int) -> float:
    middle = (len(taps) - 1) / 2
    return sum(tap * (place - middle) ** power for place, tap in enumerate(taps))


@pytest.mark.parametrize("name", ORTHONORMAL)
def test_filter_is_orthonormal_to_its_even_shifts(name: str) -> None:
    """Its sum is sqrt(2), its energy 1, and two taps further it is orthogonal to itself."""
    taps = scaling_filters()[name]
    assert math.isclose(sum(taps), math.sqrt(2), rel_tol=1e-9)
    for shift in range(0, len(taps), 2):
        shifted = sum(a * b for a, b in zip(taps, taps[shift:], strict=False))
        assert math.isclose(shifted, float(shift == 0), abs_tol=1e-9)


@pytest.mark.parametrize("name", ORTHONORMAL)
def test_wavelet_has_the_vanishing_moments_of_its_name(name: str) -> None:
    """dbN and symN have N of them, coifN has 2 N."""
    family, order = name.rstrip("0123456789"), int(name.lstrip("dbsymcoif"))
    detail = wavelet_filter(scaling_filters()[name])
    for power in range(order * (2 if family == "coif" else 1)):
        scale = (len(detail) / 2) ** power
        assert abs(_moment(detail, power)) < 1e-6 * scale


def test_coif4_is_pefts_which_is_not_orthonormal() -> None:
    """Adapters were trained with these numbers, so they are kept as PEFT has them."""
    wavelet = pytest.importorskip("peft.tuners.waveft.wavelet")
    taps = scaling_filters()["coif4"]
    assert taps == tuple(wavelet.Wavelet("coif4").rec_lo)
    assert abs(sum(taps) - math.sqrt(2)) > 0.01


def test_haar_synthesis_spreads_sums_and_differences() -> None:
    """(s, d) becomes (s + d, s - d) / sqrt(2)."""
    bands = torch.tensor([[1.0, 4.0], [3.0, 0.5]], dtype=torch.float64)
    expected = torch.tensor([4.0, -2.0, 4.5, 3.5], dtype=torch.float64) / math.sqrt(2)
    assert torch.allclose(synthesis(bands, scaling_filters()["db1"]), expected)
