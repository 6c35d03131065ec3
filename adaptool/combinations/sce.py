"""SCE: select what differs between tasks, weigh tasks by their energy, erase minority signs.

    select:     tau_t := tau_t where Var_t(tau) is among the density's share of largest, else 0
    calculate:  eta_t = sum(tau_t^2) / sum_u sum(tau_u^2)             one number a module
    erase:      tau_t := tau_t where sgn(tau_t) = sgn(sum_u tau_u), else 0
    D = sum_t eta_t tau_t

(Wan et al. 2024, FuseChat, arXiv 2408.07990.) It works in core space, on the elements of the M_t
(see core_space.py), not on those of the out x in deltas. Elements of equal variance stand or fall
together: those at the threshold are all kept, so one adapter alone, whose variances are all 0,
loses nothing. mergekit divides every element by the sum of the eta_t that were not erased there,
which makes it an average of those that are left; the paper's formula, taken here, does not. PEFT
has no SCE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptool.combinations.core_space import spectrum
from adaptool.combinations.method import Cores, Method, Options, Space, Spectrum
from adaptool.combinations.thresholds import kept_count

if TYPE_CHECKING:
    import torch

METHOD = Method("select, calculate, erase", Space.CORE, takes_density=True)


def merge(cores: Cores, options: Options) -> Spectrum:
    """The sum of what is selected, weighed and not erased."""
    import torch

    tasks = _selected(torch.stack(cores.weighted()), options.density)
    energies = tasks.square().sum(dim=(1, 2))
    total = energies.sum()
    shares = energies / total if total > 0 else energies
    agreeing = tasks.sign() == tasks.sum(0).sign()
    return spectrum((shares[:, None, None] * tasks * agreeing).sum(0))


def _selected(tasks: torch.Tensor, density: float) -> torch.Tensor:
    if tasks.numel() == 0:
        # Deltas of zeros have no directions.
        return tasks
    variance = tasks.var(dim=0, correction=0)
    count = kept_count(variance.numel(), density)
    threshold = variance.flatten().topk(count).values[-1]
    chosen: torch.Tensor = tasks * (variance >= threshold)
    return chosen
