"""The two kernels of KERPLE's Corollary 1 as plain functions of distance.

Source: Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS 2022, arXiv 2205.09921), Corollary 1.
D ``[n]`` (tokens), parameters ``[H, 1]`` -> ``[H, n]`` (logits); anything that broadcasts does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_kernel(distance: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """``-r1 log(1 + r2 D)``; broadcasts, so ``r [H, 1]`` and ``D [n]`` give ``[H, n]`` (logits)."""
    return -r1 * torch.log1p(r2 * distance)


def power_kernel(distance: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """``-r1 D^r2``; broadcasts. The gradient in r2 at D = 0 is its limit, 0."""
    return -r1 * positive_power(distance, r2)


def positive_power(base: Tensor, exponent: Tensor | float) -> Tensor:
    """``base^exponent`` for base >= 0 and exponent > 0; broadcasts.

    ``x^p log x`` is 0 * -inf at x = 0, and ``p x^(p-1)`` is infinite there for p < 1: a positive
    stand-in keeps both gradients finite, namely 0.
    """
    positive = base > 0
    safe = torch.where(positive, base, torch.ones_like(base))
    return torch.where(positive, safe**exponent, torch.zeros_like(base))
