"""Made-up documents with a known mean loss, for simulating how often intervals and tests are right.

A document has c targets and the mean loss m = 2.5 + 0.3 e nats; its summed loss is c m. Sizes are one
size, or log-normal with sigma 0.5 (coefficient of variation 0.53) or 1 (1.31: at n = 50 the largest is
some six times the mean). e has mean 0, variance 1, and correlation rho with the log-size; its own part is
normal, or a gamma with shape 4 (skewness 1). The truth is E[c m] / E[c] = 2.5 + 0.3 rho sigma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEAN, DEVIATION = 2.5, 0.3
Array = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    sigma: float  # of log-sizes
    skewed: bool  # losses
    rho: float = 0.0

    @property
    def name(self) -> str:
        sizes = {0.0: "one size", 0.5: "sigma 0.5", 1.0: "sigma 1"}[self.sigma]
        related = f", rho {self.rho:+g}" if self.rho else ""
        return f"{sizes}, {'skewed' if self.skewed else 'normal'} losses{related}"

    @property
    def truth(self) -> float:
        return MEAN + DEVIATION * self.rho * self.sigma

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        """Summed losses and targets of n documents."""
        z = rng.standard_normal(n)
        counts = np.maximum(1.0, np.round(1000 * np.exp(self.sigma * z)))
        own = (rng.gamma(4.0, 1.0, n) - 4.0) / 2.0 if self.skewed else rng.standard_normal(n)
        effect = self.rho * z + np.sqrt(1 - self.rho**2) * own
        return counts * (MEAN + DEVIATION * effect), counts


EVEN = [
    World(s, k, r) for s in (0.0, 0.5) for k in (False, True) for r in ((0.0, 0.3, -0.3) if s else (0.0,))
]
UNEVEN = [World(1.0, k, r) for k in (False, True) for r in (0.0, 0.3, -0.3)]
WORLDS = EVEN + UNEVEN
