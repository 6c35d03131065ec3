"""WaveFT (Bilican et al. 2025, arXiv:2505.12532): a few trained wavelet coefficients.

W' = W + s S_out E S_in^T     or, with `use_idwt=False`,     W' = W + s E

E holds the n trained numbers at places that are drawn from `random_loc_seed`: the first n of a
permutation of out * in. S is one level of the inverse wavelet transform along an axis; E is padded
by the filter's length less 2 (and to even sizes) first, the numbers in its middle. PEFT hands the
upper right quarter of E to the transform as what is smooth along the inputs, not along the outputs,
and the lower left the other way round; so it is done here. Source: PEFT 0.21.2, `waveft/layer.py`,
`waveft/waverec2d.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptool.errors import InputError, MismatchError
from adaptool.findings import Code
from adaptool.model.adapter import Delta, Form, Terms
from adaptool.model.tuner import Declaration
from adaptool.model.view import View
from adaptool.tuners import fields
from adaptool.tuners.elements import RowsUpdate
from adaptool.tuners.randomness import drawn_places
from adaptool.tuners.wavelets import scaling_filters, synthesis

if TYPE_CHECKING:
    import torch

    Filter = tuple[float, ...]

DECLARATION = Declaration(
    title="WaveFT",
    peft_type="WAVEFT",
    keys={"waveft_spectrum": "spectrum"},
    required=frozenset({"spectrum"}),
    additive=True,
    low_rank=False,
    invertible="rounding",
)


def terms(config: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> Terms:
    """Scaling, seed and wavelet; the sizes stand in the base alone."""
    shape = shapes["spectrum"]
    if len(shape) != 1:
        message = f"waveft_spectrum {list(shape)} is no list of coefficients"
        raise InputError(message, code=Code.SHAPE_MISMATCH, tensor=module)
    own: dict[str, Any] = {"seed": fields.whole(config, "random_loc_seed", least=0)}
    if fields.flag(config, "use_idwt", default=True):
        own["wavelet"] = fields.word(config, "wavelet_family", tuple(scaling_filters()), "db1")
    scaling = fields.number(config, "scaling")
    return Terms(Form.LINEAR, 0, 0, scaling, conventions={**own, "count": shape[0]})


def settled(delta: Delta, among: Sequence[Delta]) -> Terms:
    """The same terms; MismatchError where the weight has fewer places than there are numbers."""
    del among
    terms, count = delta.terms, delta.terms.conventions["count"]
    if count > terms.out * terms.inner:
        message = f"{count} coefficients, the weight is {terms.out} x {terms.inner}"
        raise MismatchError(message, code=Code.SHAPE_MISMATCH, tensor=delta.module)
    return terms


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the numbers lie along one axis: in which half of E, and at which place of that half."""

    band: torch.Tensor
    place: torch.Tensor
    half: int

    @classmethod
    def of(cls, places: torch.Tensor, size: int, taps: int) -> Axis:
        """Of `places` on an axis of `size`, after padding."""
        padded = size + taps - 2 + size % 2
        moved = places + (padded - size) // 2
        return cls(moved // (padded // 2), moved % (padded // 2), padded // 2)


class Transform:
    """Rows of S E S^T, E being turned as the base stores the weight."""

    def __init__(
        self, values: torch.Tensor, along: tuple[Axis, Axis], width: int, taps: Filter
    ) -> None:
        """`along` rows and columns of (rows, `width`)."""
        rows, columns = along
        order = rows.place.argsort(stable=True)
        self._values, self._place = values[order], rows.place[order]
        # What is smooth along one axis lies in the first half of the other.
        self._smooth, self._detail = columns.band[order], rows.band[order]
        self._column = columns.place[order]
        self._halves = rows.half, columns.half
        self._width, self._taps = width, taps

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last`, (last - first, width)."""
        import torch

        cut = len(self._taps) - 2
        # Row r takes places p with 0 <= r + cut - 2 p < taps.
        low, high = first // 2, min((last - 1 + cut) // 2 + 1, self._halves[0])
        bounds = torch.tensor([low, high], device=self._place.device)
        begin, end = torch.searchsorted(self._place, bounds).tolist()
        some = slice(begin, end)
        dense = self._values.new_zeros((2, high - low, 2, self._halves[1]))
        places = self._smooth[some], self._place[some] - low, self._detail[some], self._column[some]
        dense[places] = self._values[some]
        begun = first - 2 * low + cut
        down = synthesis(dense, self._taps)[begun : begun + last - first]
        across = synthesis(down.permute(1, 2, 0), self._taps)
        return across[cut : cut + self._width].T


class Scattered:
    """Rows of E itself."""

    def __init__(
        self, values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, width: int
    ) -> None:
        """`values` at `rows` and `columns` of (rows, `width`)."""
        order = rows.argsort(stable=True)
        self._values, self._row, self._column = values[order], rows[order], columns[order]
        self._width = width

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last`, (last - first, width)."""
        import torch

        bounds = torch.tensor([first, last], device=self._row.device)
        begin, end = torch.searchsorted(self._row, bounds).tolist()
        dense = self._values.new_zeros((last - first, self._width))
        dense[self._row[begin:end] - first, self._column[begin:end]] = self._values[begin:end]
        return dense


def prepare(
    factors: Mapping[str, torch.Tensor],
    terms: Terms,
    view: View,
    weight: float,
    exact: bool,  # noqa: ARG001 - the order of operations is the same
) -> RowsUpdate:
    """The additive update under `view`."""
    values = factors["spectrum"]
    own, sizes = terms.conventions, (terms.out, terms.inner)
    drawn = drawn_places(own["seed"], terms.out * terms.inner, own["count"]).to(values.device)
    places = (drawn // terms.inner, drawn % terms.inner)
    if view.transposed:
        sizes, places = sizes[::-1], places[::-1]
    if "wavelet" in own:
        taps = scaling_filters()[own["wavelet"]]
        rows, columns = (
            Axis.of(place, size, len(taps)) for place, size in zip(places, sizes, strict=True)
        )
        difference = Transform(values, (rows, columns), sizes[1], taps).rows
    else:
        difference = Scattered(values, *places, sizes[1]).rows
    return RowsUpdate(difference, view, terms.scaling * weight)
