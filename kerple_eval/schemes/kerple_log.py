"""KERPLE, logarithmic variant: ``logit_ij = q_i k_j / sqrt(d) - r1 log(1 + r2 D)``.

Source: Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS 2022, arXiv 2205.09921), Eq. (4) and
Section 4; code chijames/KERPLE, ``megatron/mpu/layers.py`` (``kerple_log``; r1 is ``bias_p``
there, r2 is ``bias_a``).

D = i - j (tokens); r1, r2 ``[H]``, one pair per head, shared by all layers: 2 H parameters. With
``per_layer=true`` (every scheme of shared parameters has that option) each layer has its own pairs, as the
DAPE paper's baseline (arXiv 2405.14722) has: 2 H a layer.
Initial values as in the release: r1 ~ U(0, 2), r2 ~ U(0, 1); both are kept >= 0.01.
The bias joins *after* the 1/sqrt(d) scaling, as in the release (the paper's Eq. (1) has it inside).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.kernels import log_kernel
from kerple_eval.types import Geometry


class KerpleLog(Scheme):
    constraints: Mapping[str, tuple[float | None, float | None]] = {
        "r1": (0.01, None),
        "r2": (0.01, None),
    }

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.r1 = nn.Parameter(torch.ones(geometry.heads))
        self.r2 = nn.Parameter(torch.ones(geometry.heads))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.r1, 0.0, 2.0, generator=generator)
        nn.init.uniform_(self.r2, 0.0, 1.0, generator=generator)

    def kernel(self, distance: Tensor) -> Tensor:
        r1, r2 = (r.to(distance.dtype)[:, None] for r in (self.r1, self.r2))
        return log_kernel(distance, r1, r2)
