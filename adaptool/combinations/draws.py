"""Random numbers that belong to an element, not to the moment they are drawn.

A counter-based generator (Philox 4x64, Salmon et al. 2011) is keyed by seed, module and adapter
and starts at a block of 64 rows: the numbers of a row are the same for any tile height, order of
tiles, number of threads, and whichever other modules are combined.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

BLOCK_ROWS = 64


def uniform(seed: int, name: str, place: int, rows: slice, width: int) -> torch.Tensor:
    """(rows, width) float64 numbers in [0, 1) for these rows of adapter `place` in module `name`.

    `rows` has a start and a stop.
    """
    import numpy as np
    import torch

    first = rows.start // BLOCK_ROWS
    last = -(-rows.stop // BLOCK_ROWS)
    key = np.frombuffer(_key(seed, name, place), dtype="<u8")
    blocks = [_block(key, block, width) for block in range(first, last)]
    drawn = torch.from_numpy(np.concatenate(blocks))
    return drawn[rows.start - first * BLOCK_ROWS : rows.stop - first * BLOCK_ROWS]


def _key(seed: int, name: str, place: int) -> bytes:
    text = json.dumps([seed, name, place]).encode()
    return hashlib.blake2b(text, digest_size=16).digest()


def _block(key: np.ndarray, block: int, width: int) -> np.ndarray:
    import numpy as np

    # The block stands in the counter's highest word: no two blocks can meet.
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, block]))
    return generator.random((BLOCK_ROWS, width))
