"""Iso-C: every direction of the sum gets the same strength, the mean of the singular values.

    sum_t tau_t = U S V^T,   s = (1/r) sum_i S_i,   D = s U V^T

(Marczak et al. 2025, No Task Left Behind, arXiv 2502.04959, Iso-C.) r is the number of singular
values above 0, that is the sum's rank, as in core space (arXiv 2509.17786); on full-rank task
vectors, which the paper is about, that is its min(out, in). Of a sum of low rank the paper's
formula would spread the strength over directions that no adapter has, chosen by the SVD routine.
A rank below r keeps the directions that were the strongest in the sum, at the same s. One adapter
alone is returned as it is: there is nothing to balance between tasks, and flattening it would
change what it does. Neither PEFT nor mergekit has it.
"""

from __future__ import annotations

from adaptool.combinations.core_space import spectrum
from adaptool.combinations.method import Cores, Method, Options, Space, Spectrum

METHOD = Method("isotropic sum", Space.CORE)


def merge(cores: Cores, options: Options) -> Spectrum:
    """s U V^T in core space."""
    import torch

    del options
    found = spectrum(torch.stack(cores.weighted()).sum(0))
    if len(cores.matrices) == 1 or len(found.values) == 0:
        return found
    return Spectrum(found.left, found.values.mean().expand(len(found.values)), found.right)
