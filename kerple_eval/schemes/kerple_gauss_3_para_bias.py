"""KERPLE, Gaussian-like "3-para-bias": ``logit_ij = q_i k_j / sqrt(d) + r1 exp(-r2 D^r3)``.

Source: Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS 2022, arXiv 2205.09921), Appendix A.3 and
Table 6. Positive definite (the exponential of a CPD kernel), so that no offset is needed; bounded, so
that far tokens are not turned down: the paper's negative example. Not in the released code.

D = i - j (tokens); r1, r2, r3 ``[H]``, shared by all layers: 3 H parameters. Initial values follow
the release's for the same roles (``kerple_power``): r1, r2 ~ U(0, 1), r3 ~ U(0, 2); r1, r2 are kept
>= 0.01 and r3 within [0.01, 2]. The bias joins *after* the 1/sqrt(d) scaling, as in kerple-log.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.kernels import power_kernel
from kerple_eval.types import Geometry


class KerpleGauss3ParaBias(Scheme):
    constraints: Mapping[str, tuple[float | None, float | None]] = {
        "r1": (0.01, None),
        "r2": (0.01, None),
        "r3": (0.01, 2.0),
    }

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.r1 = nn.Parameter(torch.ones(geometry.heads))
        self.r2 = nn.Parameter(torch.ones(geometry.heads))
        self.r3 = nn.Parameter(torch.ones(geometry.heads))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.r1, 0.0, 1.0, generator=generator)
        nn.init.uniform_(self.r2, 0.0, 1.0, generator=generator)
        nn.init.uniform_(self.r3, 0.0, 2.0, generator=generator)

    def kernel(self, distance: Tensor) -> Tensor:
        r1, r2, r3 = (r.to(distance.dtype)[:, None] for r in (self.r1, self.r2, self.r3))
        return r1 * torch.exp(power_kernel(distance, r2, r3))
