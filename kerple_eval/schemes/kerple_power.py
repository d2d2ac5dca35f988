"""KERPLE, power variant: ``logit_ij = q_i k_j / sqrt(d) - r1 D^r2``.

Source: Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS 2022, arXiv 2205.09921), Eq. (4) and
Section 4; code chijames/KERPLE, ``megatron/mpu/layers.py`` (``kerple_power_ap_``; r1 is ``bias_a``
there, r2 is ``bias_p``).

D = i - j (tokens); r1, r2 ``[H]``, one pair per head, shared by all layers: 2 H parameters.
Initial values as in the release: r1 ~ U(0, 1), r2 ~ U(0, 2); r1 is kept >= 0.01 and r2 within
[0.01, 2], the exponents for which -D^r2 is conditionally positive definite.
The bias joins *after* the 1/sqrt(d) scaling, as in the release.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.kernels import power_kernel
from kerple_eval.types import Geometry


class KerplePower(Scheme):
    constraints: Mapping[str, tuple[float | None, float | None]] = {
        "r1": (0.01, None),
        "r2": (0.01, 2.0),
    }

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.r1 = nn.Parameter(torch.ones(geometry.heads))
        self.r2 = nn.Parameter(torch.ones(geometry.heads))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.r1, 0.0, 1.0, generator=generator)
        nn.init.uniform_(self.r2, 0.0, 2.0, generator=generator)

    def kernel(self, distance: Tensor) -> Tensor:
        r1, r2 = (r.to(distance.dtype)[:, None] for r in (self.r1, self.r2))
        return power_kernel(distance, r1, r2)
