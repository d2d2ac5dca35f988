"""SSMax: ``logit_ij = s_h ln(n) (q_i k_j / sqrt(d))``, n the number of keys that query i sees.

Source: Nakanishi, "Scalable-Softmax Is Superior for Attention" (arXiv 2501.19399), Eq. (2)-(3).

A modifier: ``rope,ssmax=1`` scales RoPE's scores, and a kernel or bias is added after it. s ``[H]``, one
number a head, shared by all layers, starts at ``start`` / ln(the trained length): the scaling is
``start`` at the last trained position. n is i + 1, or fewer where a window or another mask is applied too
(``rope,ssmax,window=256``: min(i + 1, 256)): the softmax's number of inputs, as in the paper. It is the row's
own count, so losses do not depend on later tokens. Row 0 sees one key, and ln 1 = 0 changes nothing there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


class SSMax(Scheme):
    def __init__(self, geometry: Geometry, *, start: float = 1.0) -> None:
        super().__init__(geometry)
        if not 0 < start < math.inf:
            raise UserError(f"ssmax: start={start} must be positive")
        self.start = start
        self.s = nn.Parameter(torch.ones(geometry.heads))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.s, self.start / math.log(max(2, self.geometry.train_length)))

    def row_scale(self, positions_q: Tensor, keys: Tensor) -> Tensor:
        return self.s[:, None] * torch.log1p((keys - 1).to(self.s.dtype))
