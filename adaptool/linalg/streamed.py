"""The best low-rank factors of a matrix that exists only a tile of rows at a time.

Two ways to the leading subspace, both in float64 and both in a few passes over the tiles:

- Gram: the matrix M's smaller side n is at most 4096 (or `exact` is asked for): the n x n Gram
  matrix and its eigenvectors. Squaring loses what is below about 1e-8 of the largest singular
  value.
- Subspace iteration (Halko, Martinsson and Tropp 2011), for larger sides: a random block of
  rank + 16 columns, multiplied by M^T M and made orthonormal 4 times, one pass each. For an energy
  the block grows until it holds it.

Either way one more pass computes P = M Z on the subspace found, whose SVD gives the factors
(Rayleigh and Ritz), and measures M - P Z^T itself. The error reported is that measured residual and
the singular values that were cut, as a sum of squares: nothing cancels in it, so an error of 1e-12
is one, for both ways. (|M|^2 - sum sigma^2 would be blind below 1e-8.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.errors import InputError
from adaptool.findings import Code

if TYPE_CHECKING:
    import torch

GRAM_SIDE = 1024
OVERSAMPLING = 16
PASSES = 4
# Rows of M that are held for the Gram matrix of its rows: 256 MB.
_HELD_ELEMENTS = 1 << 25
_FIRST_RANK = 32

Tiles = Callable[[], Iterator[tuple[slice, "torch.Tensor"]]]


@dataclass(frozen=True, slots=True)
class Streamed:
    """M is about left (out, k) @ right (k, in), float64, each carrying sqrt(S).

    `values` are the singular values known, largest first: all min(out, in) by Gram (to 1e-8 of the
    largest), the leading k + 16 otherwise. `relative_error` is |M - left right|_F / |M|_F. `exact`
    says that the subspace came from the Gram matrix: no other factors of rank k are nearer.
    """

    left: torch.Tensor
    right: torch.Tensor
    values: tuple[float, ...]
    relative_error: float
    exact: bool


def leading(
    tiles: Tiles,
    shape: tuple[int, int],
    *,
    rank: int | None = None,
    energy: float | None = None,
    exact: bool = False,
    seed: int = 0,
) -> Streamed:
    """The best factors of the (out, in) matrix whose rows `tiles()` gives in order.

    Each call of `tiles` gives the same rows again, as (slice of rows, piece (rows, in)) of any
    float dtype and any heights. Give `rank`, and factors are filled with zeros up to it; or give
    `energy` in (0, 1], and the rank is the least (at least 1) that keeps this share of |M|^2.
    `exact` takes the Gram matrix at any size. InputError where values are not finite.
    """
    matrix = _Matrix(tiles, shape)
    if exact or min(shape) <= GRAM_SIDE:
        return _by_gram(matrix, rank, energy)
    if rank is None:
        return _growing(matrix, _share(energy), seed)
    return _by_iteration(matrix, rank, seed)


def _share(energy: float | None) -> float:
    return 1.0 if energy is None else energy


def _by_gram(matrix: _Matrix, rank: int | None, energy: float | None) -> Streamed:
    import torch

    ascending, vectors = torch.linalg.eigh(_finite(matrix.gram()), UPLO="U")
    squares = _cleared(ascending.flip(0))
    wanted = _least_rank(squares, _share(energy)) if rank is None else rank
    subspace = vectors.flip(1)[:, :wanted]
    if matrix.wide:
        subspace, _ = torch.linalg.qr(matrix.transposed_times(subspace))
    found = matrix.projected(subspace)
    rest = squares[subspace.shape[1] :].sqrt().tolist()
    return _factors(found, wanted, exact=True, rest=rest)


def _by_iteration(matrix: _Matrix, rank: int, seed: int) -> Streamed:
    return _factors(matrix.projected(matrix.iterated(rank, seed)), rank, exact=False)


def _growing(matrix: _Matrix, energy: float, seed: int) -> Streamed:
    """Subspaces of twice the size until one has the energy; the Gram matrix if none is small."""
    size = _FIRST_RANK
    while 4 * size <= min(matrix.shape):
        found = matrix.projected(matrix.iterated(size, seed))
        lacking = found.residual_square - (1 - energy) * found.total_square
        if lacking <= 0:
            return _factors(found, _least_rank(found.squares(), energy, found), exact=False)
        size *= 2
    return _by_gram(matrix, None, energy)


def _cleared(squares: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of a Gram matrix, largest first, without those that are only rounding."""
    import torch

    floor = len(squares) * torch.finfo(squares.dtype).eps * squares[:1]
    return squares.where(squares > floor, 0.0)


def _least_rank(squares: torch.Tensor, energy: float, found: _Projected | None = None) -> int:
    """The least count of leading squares, at least 1, that lacks at most 1 - energy of all."""
    outside = found.residual_square if found else 0.0
    # tails[i] is what lies behind the first i: summed from the small end, so that nothing cancels.
    tails = squares.flip(0).cumsum(0).flip(0) + outside
    lacking = tails > (1 - energy) * tails[0]
    return max(1, int(lacking.sum()))


@dataclass(frozen=True, slots=True)
class _Projected:
    """M is Q U diag(S) V Z^T, that is `left` diag(values) `right`, and a measured residual."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    residual_square: float

    def squares(self) -> torch.Tensor:
        return self.values.square()

    @property
    def total_square(self) -> float:
        return self.residual_square + float(self.squares().sum())


def _factors(found: _Projected, rank: int, *, exact: bool, rest: Sequence[float] = ()) -> Streamed:
    import torch

    kept = min(rank, len(found.values))
    root = found.values[:kept].sqrt()
    left = torch.zeros((found.left.shape[0], rank), dtype=torch.float64)
    right = torch.zeros((rank, found.right.shape[1]), dtype=torch.float64)
    left[:, :kept] = found.left[:, :kept] * root
    right[:kept] = root[:, None] * found.right[:kept]
    lost = found.residual_square + float(found.squares()[kept:].sum())
    error = (lost / found.total_square) ** 0.5 if lost else 0.0
    return Streamed(left, right, (*found.values.tolist(), *rest), error, exact)


def _finite(sums: torch.Tensor) -> torch.Tensor:
    if not sums.isfinite().all():
        message = "the matrix has values that are not finite, or too large to be squared"
        raise InputError(
            message,
            code=Code.NOT_FINITE,
        )
    return sums


@dataclass(frozen=True, slots=True)
class _Matrix:
    """The passes over the tiles of M (out, in)."""

    tiles: Tiles
    shape: tuple[int, int]

    @property
    def wide(self) -> bool:
        """Whether the rows are the smaller side."""
        return self.shape[0] < self.shape[1]

    def gram(self) -> torch.Tensor:
        """M^T M (in, in), or M M^T (out, out) where that is smaller: its upper triangle."""
        return self._gram_of_rows() if self.wide else self._gram_of_columns()

    def _gram_of_columns(self) -> torch.Tensor:
        import torch

        gram = torch.zeros((self.shape[1], self.shape[1]), dtype=torch.float64)
        for _, tile in self.tiles():
            piece = tile.double()
            gram.addmm_(piece.T, piece)
        return gram

    def _gram_of_rows(self) -> torch.Tensor:
        """A pass for every block of rows that is held against the rows behind it."""
        import torch

        out, inner = self.shape
        height = max(1, _HELD_ELEMENTS // inner)
        gram = torch.zeros((out, out), dtype=torch.float64)
        for start in range(0, out, height):
            self._fill_rows(gram, start, min(start + height, out))
        return gram

    def _fill_rows(self, gram: torch.Tensor, start: int, stop: int) -> None:
        import torch

        held = torch.zeros((stop - start, self.shape[1]), dtype=torch.float64)
        for rows, tile in self.tiles():
            first, last = max(rows.start, start), min(rows.stop, stop)
            if first < last:
                held[first - start : last - start] = tile[first - rows.start : last - rows.start]
            behind = max(rows.start, stop)
            if behind < rows.stop:
                # Rows come in order: the block is complete.
                gram[start:stop, behind : rows.stop] = held @ tile[behind - rows.start :].double().T
        gram[start:stop, start:stop] = held @ held.T

    def transposed_times(self, columns: torch.Tensor) -> torch.Tensor:
        """M^T columns (in, k)."""
        import torch

        product = torch.zeros((self.shape[1], columns.shape[1]), dtype=torch.float64)
        for rows, tile in self.tiles():
            product.addmm_(tile.double().T, columns[rows])
        return product

    def iterated(self, rank: int, seed: int) -> torch.Tensor:
        """An orthonormal basis (in, rank + 16) of about the leading right singular vectors."""
        import torch

        count = min(rank + OVERSAMPLING, *self.shape)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn((self.shape[1], count), generator=generator, dtype=torch.float64)
        basis: torch.Tensor = torch.linalg.qr(start).Q
        for _ in range(PASSES):
            powered = torch.zeros_like(basis)
            for _, tile in self.tiles():
                piece = tile.double()
                powered.addmm_(piece.T, piece @ basis)
            basis = torch.linalg.qr(_finite(powered)).Q
        return basis

    def projected(self, basis: torch.Tensor) -> _Projected:
        """The SVD of M Z Z^T for orthonormal columns Z (in, k), and |M - M Z Z^T|^2 measured."""
        import torch

        image = torch.zeros((self.shape[0], basis.shape[1]), dtype=torch.float64)
        residual = 0.0
        for rows, tile in self.tiles():
            piece = tile.double()
            image[rows] = piece @ basis
            residual += float((piece - image[rows] @ basis.T).square().sum())
        outer, upper = torch.linalg.qr(_finite(image))
        left, values, right = torch.linalg.svd(upper, full_matrices=False)
        return _Projected(outer @ left, values, right @ basis.T, residual)
