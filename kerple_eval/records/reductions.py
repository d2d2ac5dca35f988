"""Reductions of losses. Units: losses in nats per target; sums in float64. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kerple_eval.types import Window


def total_loss(losses: Sequence[NDArray[np.float32]]) -> float:
    """Summed loss (nats) over windows: float64 within a window, exactly rounded across windows."""
    return math.fsum(float(window.sum(dtype=np.float64)) for window in losses)


def mean_loss(losses: Sequence[NDArray[np.float32]]) -> float:
    """Mean loss in nats per target: the sum over all targets by their number."""
    return total_loss(losses) / sum(len(window) for window in losses)


def perplexity(nll: float) -> float | None:
    """``exp(nll)``; None where it exceeds the largest float."""
    try:
        return math.exp(nll)
    except OverflowError:
        return None


def bits_per_byte(losses: Sequence[NDArray[np.float32]], byte_count: int | None) -> float | None:
    """``summed loss / (ln 2 x UTF-8 bytes of the scored targets)``; None where bytes are unknown."""
    return total_loss(losses) / (math.log(2) * byte_count) if byte_count else None


def contexts(windows: Sequence[Window]) -> NDArray[np.int64]:
    """Context of every scored target (tokens the model saw), window after window."""
    return np.concatenate(
        [np.arange(w.first_target - w.start, w.stop - w.start + 1, dtype=np.int64) for w in windows]
    )


def weighted_mean(losses: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> float:
    """``sum(weight * mean loss of the window) / sum(weights)``; sums in float64, exactly rounded."""
    means = [float(row.sum(dtype=np.float64)) / len(row) for row in losses]
    total = math.fsum(weight * mean for weight, mean in zip(weights, means, strict=True))
    return total / math.fsum(weights)
