"""TSV-Merge: the leading singular triplets of every task, made orthogonal to each other.

    tau_t = U_t S_t V_t^T, cut to its leading floor(min(out, in) / T) triplets
    U = [U_1 .. U_T], S = diag(S_1, .., S_T), V = [V_1 .. V_T]
    U' = P Q^T with U = P E Q^T, the nearest orthonormal columns (V' alike)
    D = U' S V'^T

(Gargiulo et al. 2024, Task Singular Vectors, arXiv 2412.00081, section 4.) Only triplets with a
singular value above 0 take part; the paper's other ones are arbitrary vectors at no weight. Where
columns of U depend on each other (the same adapter twice), the nearest orthonormal columns are not
unique, and a plain SVD fills in arbitrary directions at full strength; here U' keeps the span
of U, so the same adapter twice gives that adapter once. One adapter alone is returned as it is:
its vectors are orthonormal already. PEFT has no TSV. Others keep 1/T of the core's size where
this keeps 1/T of the matrix's, as the paper does; for adapters of equal rank nothing is cut by
either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptool.combinations.core_space import spectrum, substantial
from adaptool.combinations.method import Cores, Method, Options, Space, Spectrum

if TYPE_CHECKING:
    import torch

METHOD = Method("task singular vectors", Space.CORE)
# Columns of U have length 1: below this they depend on the others.
DEPENDENT = 1e-10


def merge(cores: Cores, options: Options) -> Spectrum:
    """U' S V'^T in core space."""
    import torch

    del options
    count = max(1, min(cores.shape) // len(cores.matrices))
    tasks = [spectrum(core) for core in cores.weighted()]
    left = torch.cat([task.left[:, :count] for task in tasks], dim=1)
    values = torch.cat([task.values[:count] for task in tasks])
    right = torch.cat([task.right[:count] for task in tasks], dim=0)
    return spectrum((_orthonormal(left) * values) @ _orthonormal(right.T).T)


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal columns inside the span of `columns`."""
    import torch

    left, values, right = torch.linalg.svd(columns, full_matrices=False)
    count = substantial(values, DEPENDENT)
    nearest: torch.Tensor = left[:, :count] @ right[:count]
    return nearest
