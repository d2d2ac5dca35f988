"""A model's kernels as its figures need them: numpy arrays over distance. Imports no torch.

D = i - j (tokens) is the distance from a query back to a key; H heads. :mod:`scheme_view` reads these from
a checkpoint.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: KERPLE, Figure 6: a head reaches as far as its kernel stays within this of its value at D = 0.
THRESHOLD = -2.0


class KernelView(Protocol):
    """One model's kernels, of one layer where each layer has its own."""

    @property
    def label(self) -> str: ...
    @property
    def scheme(self) -> str: ...
    @property
    def heads(self) -> int: ...
    @property
    def train_length(self) -> int | None: ...
    @property
    def window(self) -> int | None:
        """Keys at this distance and beyond are not seen; None: all are."""
        ...

    def kernel(self, distances: NDArray[np.int64]) -> Array | None:
        """Added to the scaled scores: ``[n]`` -> ``[H, n]``, float64; None where the scheme has none."""
        ...

    def weight(self, distances: NDArray[np.int64]) -> Array | None:
        """Multiplies the scaled scores first: ``[n]`` -> ``[H, n]``; None where the scheme has none."""
        ...

    def matrix(self, length: int, head: int) -> Array:
        """Everything added to one head's scores ``[length, length]``; -inf where a key is not seen."""
        ...


def title(model: KernelView) -> str:
    """Its label and its scheme, the scheme alone where that begins with the label."""
    name = model.scheme if model.scheme.startswith(model.label) else f"{model.label} ({model.scheme})"
    return name.replace(",", ", ")


def kernel_reaches(kernel: Array, window: int | None = None) -> list[int | None]:
    """Per head ``min {D : k(D) - k(0) < -2}``; None where there is no such distance below n.

    ``kernel [H, n]`` at *every* distance 0..n-1. Source: KERPLE (Chi et al. 2022, arXiv 2205.09921),
    Figure 6, ``eff(h) = min {|m - n| : k_h(|m - n|) < -2}``. The paper's kernels are 0 at D = 0; elsewhere
    (T5, a Gaussian bias) the fall from there counts, since softmax does not see a constant. Nothing is seen
    from ``window`` on, so no head reaches past it.
    """
    below = kernel - kernel[:, :1] < THRESHOLD
    if window is not None:
        below[:, window:] = True
    return [int(row.argmax()) if row.any() else None for row in below]
