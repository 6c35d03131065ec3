"""One rounding, to nearest even, from the arithmetic's dtype into the output's.

torch converts float64 to a 16-bit dtype through float32, which rounds twice: wrong where float32
lands on the middle between two 16-bit numbers while the float64 value lay beside it (7.5e-6 of
bf16 elements). Those few are moved back by one float32 step before the second rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# float32 patterns that may be such a middle: mask and value of the low bits. float16's subnormals
# have middles with more trailing zeros, which its mask includes; moving a value that is no middle
# by one float32 step does no harm.
_MIDDLES = {"torch.bfloat16": (0xFFFF, 0x8000), "torch.float16": (0x0FFF, 0x0000)}


def round_into(
    target: torch.Tensor, value: torch.Tensor, single: torch.Tensor
) -> torch.Tensor | None:
    """target = value, correctly rounded; `single` is a float32 scratch of the same shape.

    Returns the flat places where float32 may lie on a middle; None where nothing looked for them.
    """
    middle = _MIDDLES.get(str(target.dtype))
    if middle is None or value.element_size() == 4:
        target.copy_(value)
        return None
    single.copy_(value)
    where = _candidates(single.view(-1), *middle)
    if len(where):
        _move_off_middles(single, value, where)
    target.copy_(single)
    return where


def _move_off_middles(single: torch.Tensor, value: torch.Tensor, where: torch.Tensor) -> None:
    if single.device.type == "cpu":
        _move_on_cpu(single, value, where)
    else:
        _move_on_device(single, value, where)


def _move_on_cpu(single: torch.Tensor, value: torch.Tensor, where: torch.Tensor) -> None:
    """In numpy: a handful of elements, for which each torch call costs more than the work."""
    import numpy as np

    places, flat = where.numpy(), single.view(-1).numpy()
    true, rounded = value.view(-1).numpy()[places], flat[places]
    moving = (rounded != true) & np.isfinite(true)
    toward = np.where(true > rounded, np.float32(np.inf), np.float32(-np.inf))
    flat[places] = np.where(moving, np.nextafter(rounded, toward), rounded)


def _move_on_device(single: torch.Tensor, value: torch.Tensor, where: torch.Tensor) -> None:
    import torch

    flat, exact = single.view(-1), value.view(-1)
    rounded, true = flat[where], exact[where]
    back = rounded.double()
    toward = torch.where(true > back, torch.inf, -torch.inf).to(rounded.dtype)
    moved = torch.nextafter(rounded, toward)
    flat[where] = torch.where((back != true) & true.isfinite(), moved, rounded)


def _candidates(single: torch.Tensor, mask: int, bits: int) -> torch.Tensor:
    """Indices whose low bits are those of a middle."""
    import numpy as np
    import torch

    if single.device.type != "cpu":
        return ((single.view(torch.int32) & mask) == bits).nonzero().view(-1)
    # numpy: three passes of 50 us per megabyte together, a third of the same in torch. Both masks
    # lie in the low half, so 16-bit arithmetic is enough.
    low = single.numpy().view(np.uint32).astype(np.uint16)
    if mask != 0xFFFF:
        low &= np.uint16(mask)
    return torch.from_numpy(np.flatnonzero(low == np.uint16(bits)))
