"""FourierFT (Gao et al. 2024, arXiv:2405.03003): a few frequencies of the delta.

W' = W + s Re(ifft2(F)),   F[u_k, v_k] = c_k for k < n, zero elsewhere

`fourierft_spectrum` c (n) is stored; the places are the first n of a random order of all elements
of a weight (out, in), drawn again from `random_loc_seed`. Each frequency is the sum of two products
of a vector along the outputs and one along the inputs, so that the delta has rank 2 n at most.
Source: PEFT 0.21.2, `fourierft/layer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import Span, View
from adaptool.tuners import fields
from adaptool.tuners.randomness import drawn_places

if TYPE_CHECKING:
    import torch

DECLARATION = Declaration(
    title="FourierFT",
    peft_type="FOURIERFT",
    keys={"fourierft_spectrum": "spectrum"},
    required=frozenset({"spectrum"}),
    additive=True,
    low_rank=True,
    sizes_told=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Scaling and seed; both sizes are the base's."""
    shape = shapes["spectrum"]
    if len(shape) != 1:
        message = f"fourierft_spectrum {list(shape)} must be one number for each frequency"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    conventions = {"seed": fields.whole(config, "random_loc_seed", least=0), "count": shape[0]}
    scaling = fields.number(config, "scaling")
    return Terms(Form.LINEAR, 0, 0, scaling=scaling, conventions=conventions)


def settled(delta: Delta, among: Sequence[Delta]) -> Terms:  # noqa: ARG001 - the seam passes all
    """MismatchError where there are more frequencies than elements."""
    terms, count = delta.terms, int(delta.terms.conventions["count"])
    if count > terms.out * terms.inner:
        message = f"{count} frequencies for a weight of {terms.out} x {terms.inner}"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module)
    return terms


def _frequencies(terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
    """u and v: the frequency along the outputs and along the inputs, one pair each."""
    seed, count = int(terms.conventions["seed"]), int(terms.conventions["count"])
    places = drawn_places(seed, terms.out * terms.inner, count)
    return places // terms.inner, places % terms.inner


def _angles(frequencies: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    """(places, n) of 2 pi f x / size in float64; f x is taken modulo `size` in whole numbers."""
    return (places[:, None] * frequencies % size).double() * (2 * math.pi / size)


def product_factors(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    expert: int | None,  # noqa: ARG001 - FourierFT knows no stacked experts
) -> tuple[torch.Tensor, torch.Tensor]:
    """c cos and c sin along the outputs (out, 2 n), cos and -sin along the inputs (2 n, in)."""
    import torch

    if not terms.sized:
        message = "the layer's size is told by the base alone"
        raise InputError(message, code=Code.UNSUPPORTED, hint="name the base")
    spectrum = factors["spectrum"]
    u, v = _frequencies(terms)
    along_outputs = _angles(u, torch.arange(terms.out), terms.out).to(spectrum)
    along_inputs = _angles(v, torch.arange(terms.inner), terms.inner).to(spectrum)
    height = spectrum / (terms.out * terms.inner)
    left = torch.cat([along_outputs.cos() * height, along_outputs.sin() * height], dim=1)
    return left, torch.cat([along_inputs.cos(), -along_inputs.sin()], dim=1).T


class SpectralUpdate:
    """`scaling * Re(ifft2(F))`: along the rows by sums, along the columns by a transform."""

    def __init__(
        self,
        spectrum: torch.Tensor,
        along: tuple[torch.Tensor, torch.Tensor],
        sizes: tuple[int, int],
        taken: tuple[Span | None, Span | None],
    ) -> None:
        """Frequencies along rows and columns of (rows, columns) = `sizes`, of which `taken`."""
        import torch

        device = spectrum.device
        self._sizes, self._spectrum = sizes, spectrum / sizes[0]
        self._over_rows, self._over_columns = (found.to(device) for found in along)
        rows, columns = taken
        of_rows = range(sizes[0]) if rows is None else rows.indices()
        self._rows = torch.tensor(list(of_rows), device=device)
        self._columns: torch.Tensor | None = None
        if columns is not None:
            self._columns = torch.tensor(list(columns.indices()), device=device)

    def accumulate(self, out: torch.Tensor, base: torch.Tensor, rows: slice) -> None:  # noqa: ARG002 - the seam passes W to every tuner
        """out += (s Re(ifft2(F)))[rows]."""
        import torch

        angles = _angles(self._over_rows, self._rows[rows], self._sizes[0]).to(self._spectrum)
        waves = torch.complex(angles.cos() * self._spectrum, angles.sin() * self._spectrum)
        lines = waves.new_zeros(len(angles), self._sizes[1])
        lines.index_add_(1, self._over_columns, waves)
        value = torch.fft.ifft(lines, dim=1).real
        if self._columns is not None:
            value = value[:, self._columns]
        out.add_(value)


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the same steps in both precisions
) -> SpectralUpdate:
    """The additive update under `view`."""
    u, v = _frequencies(terms)
    along, sizes = (u, v), (terms.out, terms.inner)
    if view.transposed:
        along, sizes = along[::-1], sizes[::-1]
    spectrum = factors["spectrum"] * (terms.scaling * weight)
    return SpectralUpdate(spectrum, along, sizes, (view.take_rows, view.take_columns))
