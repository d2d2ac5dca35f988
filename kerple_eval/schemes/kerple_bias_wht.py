"""KERPLE, "bias+wht": ``logit_ij = q_i k_j / sqrt(d) * exp(-r3 D^r4) - r1 D^r2``.

Source: Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS 2022, arXiv 2205.09921), Section 5.3 and
Table 5; code chijames/KERPLE, ``megatron/mpu/layers.py`` (``kerple_power_ap_ap``; r1, r2, r3, r4 are
``bias_a``, ``bias_p``, ``wei_a``, ``wei_p`` there).

D = i - j (tokens); r1..r4 ``[H]``, shared by all layers: 4 H parameters. Initial values as in the
release: r1, r3 ~ U(0, 1), r2, r4 ~ U(0, 2); r1, r3 are kept >= 0.01 and r2, r4 within [0.01, 2].
The bias joins *after* the 1/sqrt(d) scaling, as in the release.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.kernels import power_kernel
from kerple_eval.types import Geometry


class KerpleBiasWeight(Scheme):
    constraints: Mapping[str, tuple[float | None, float | None]] = {
        "r1": (0.01, None),
        "r2": (0.01, 2.0),
        "r3": (0.01, None),
        "r4": (0.01, 2.0),
    }

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        for name in self.constraints:
            self.register_parameter(name, nn.Parameter(torch.ones(geometry.heads)))

    def reset_parameters(self, generator: torch.Generator) -> None:
        for name in self.constraints:
            top = 1.0 if name in ("r1", "r3") else 2.0
            nn.init.uniform_(self.get_parameter(name), 0.0, top, generator=generator)

    def kernel(self, distance: Tensor) -> Tensor:
        return self._power("r1", "r2", distance)

    def weight(self, distance: Tensor) -> Tensor:
        return torch.exp(self._power("r3", "r4", distance))

    def _power(self, factor: str, exponent: str, distance: Tensor) -> Tensor:
        """``-factor D^exponent``: D ``[n]`` -> ``[H, n]``."""
        a, p = (self.get_parameter(r).to(distance.dtype)[:, None] for r in (factor, exponent))
        return power_kernel(distance, a, p)
