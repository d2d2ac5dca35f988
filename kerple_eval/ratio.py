"""The interval of a ratio of sums over documents (delta method). Imports no torch.

Documents d = 1..m are the sample; r = sum(x_d) / sum(n_d) with x_d a document's summed quantity (nats) and
n_d its targets. Linearised, r varies as the mean of e_d = x_d - r n_d over n's mean, so

    var(r) = m / (m - 1) * sum(e_d^2) / sum(n_d)^2

(Cochran, Sampling Techniques, 1977, equation 6.13 without the finite-population factor), and the interval is
r +- t(m - 1) sqrt(var).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

#: Fewer documents give no interval.
LEAST_DOCUMENTS = 5


def ratio_interval(
    sums: NDArray[np.float64], counts: NDArray[np.int64], level: float = 0.95
) -> tuple[float, float] | None:
    """(low, high) of ``sums.sum() / counts.sum()`` at ``level``; None below ``LEAST_DOCUMENTS``."""
    m = len(sums)
    if m < LEAST_DOCUMENTS:
        return None
    total = float(counts.sum())
    ratio = math.fsum(sums) / total
    rest = sums - ratio * counts
    spread = math.sqrt(m / (m - 1) * float(rest @ rest)) / total
    half = float(stdtrit(m - 1, (1 + level) / 2)) * spread
    return ratio - half, ratio + half
