"""KERPLE, weight variant ("1-para-wht"): ``logit_ij = q_i k_j / sqrt(d) * exp(-r1 D^2)``.

Source: Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS 2022, arXiv 2205.09921), Appendix A.3 (not in the
released code, whose 2-para-wht it is with the exponent at 2).

D = i - j (tokens); r1 ``[H]``, one number per head, shared by all layers: H parameters. Initial values
and the bound as in the release's 2-para-wht: r1 ~ U(0, 1), kept >= 0.01. The weight multiplies the
score *after* the 1/sqrt(d) scaling (which commutes).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.kernels import power_kernel
from kerple_eval.types import Geometry


class KerpleGauss1ParaWeight(Scheme):
    constraints: Mapping[str, tuple[float | None, float | None]] = {"r1": (0.01, None)}

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.r1 = nn.Parameter(torch.ones(geometry.heads))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.r1, 0.0, 1.0, generator=generator)

    def weight(self, distance: Tensor) -> Tensor:
        r1 = self.r1.to(distance.dtype)[:, None]
        return torch.exp(power_kernel(distance, r1, torch.full_like(r1, 2.0)))
