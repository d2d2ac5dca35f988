"""A vector of distances as a matrix of positions, without a copy, and its gradient back to the vector."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def hankel(values: Tensor, reach: int, first: int, last: int, lowest: int = 0) -> Tensor:
    """Bias ``[1, H, last - first + 1, last + 1 - lowest]`` of query positions last, last-1, ..., first and
    keys from ``lowest``, as a view of ``values [H, reach + n]``: row r and key j at ``last - r - j``."""
    heads, width = values.shape
    return values.as_strided(
        (1, heads, last - first + 1, last + 1 - lowest),
        (0, width, 1, 1),
        values.storage_offset() + reach - 1 - last + lowest,
    )


def antidiagonals(block: Tensor) -> Tensor:
    """Sums over r + j = t: ``[H, R, J]`` -> ``[H, R + J - 1]``, by shearing the rows."""
    heads, rows, columns = block.shape
    width = rows + columns
    sheared = F.pad(block, (0, rows)).reshape(heads, rows * width)
    sheared = sheared[:, : rows * (width - 1)].reshape(heads, rows, width - 1)
    # Row r, column j lands at flat index r*width + j = r*(width-1) + (r+j).
    return sheared.sum(dim=1)
