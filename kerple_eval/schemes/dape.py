"""DAPE: scores and a static bias, put through a small network, pair by pair.

Source: Zheng et al., "DAPE: Data-Adaptive Positional Encoding for Length Extrapolation" (NeurIPS 2024, arXiv
2405.14722), Eq. (5); code chuanyang-Zheng/DAPE, ``DAPE.py`` (``ParallelKerpleLog_DAPE``, ``AliBi_DAPE``).

    logit = x + b + MLP([x ; b]),   x = q_i k_j / sqrt(d),   MLP: 2 H -> M -> H, LeakyReLU(0.01)

over the H heads of one pair (i, j). ``static`` b is KERPLE's logarithmic kernel ("kerple-log"; r1, r2
``[H]``, initial values and bounds as there), "alibi" or "none"; M = 32 ``units``. Each layer has its own,
kernel included, as in the released code: 2 H + 2 H M + M + M H + H a layer. Pairs do not meet, so losses do
not depend on later tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.schemes.adaptive import Adaptive
from kerple_eval.schemes.networks import Linear, reset_linear
from kerple_eval.types import Geometry


class Dape(Adaptive):
    def __init__(self, geometry: Geometry, *, static: str = "kerple-log", units: int = 32) -> None:
        super().__init__(geometry, "dape", static, units)
        self.into = Linear(2 * geometry.heads, units)
        self.out = Linear(units, geometry.heads)

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        for layer in (self.into, self.out):
            reset_linear(layer, generator)

    def adapt(self, both: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.into(both.permute(0, 2, 3, 1).to(self.into.weight.dtype)))
        out: Tensor = self.out(hidden)
        return out.permute(0, 3, 1, 2).to(both.dtype)
