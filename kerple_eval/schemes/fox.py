"""FoX (forgetting attention): each head forgets by gates read from the text.

Source: Lin et al., "Forgetting Transformer: Softmax Attention with a Forget Gate" (ICLR 2025, arXiv
2503.02130), Eq. (4)-(7); code zhixuan-lin/forgetting-transformer,
``modeling_forgetting_transformer.py`` (``fgate_type="full"``).

    logit_ij = q_i k_j / sqrt(d) + sum_{l=j+1..i} ln f_l,   f_l = sigmoid(w_h x_l + b_h)

x ``[W]`` are the layer's normed inputs; w ``[H, W]`` starts N(0, 0.02^2) and b ``[H]`` at 0, or, with
``slowest`` (tokens) above 0, where the gate alone decays over 1 .. ``slowest`` tokens, spread over the
heads in logarithm: b = -ln(e^(1/tau) - 1). Each layer has its own: W H + H a layer. Cumulative sums are
formed in float64. Losses do not depend on later tokens.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.networks import Linear
from kerple_eval.types import Geometry, UserError


class Fox(Scheme):
    per_layer: ClassVar[bool] = True

    def __init__(self, geometry: Geometry, *, slowest: float = 0.0) -> None:
        super().__init__(geometry)
        if slowest and not 1 <= slowest < math.inf:
            raise UserError(f"fox: slowest={slowest} must be at least 1 token (or 0: biases start at 0)")
        self.slowest = slowest
        self.gate = Linear(geometry.width, geometry.heads)

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.gate.weight, 0.0, 0.02, generator=generator)
        nn.init.zeros_(self.gate.bias)
        if self.slowest:
            heads = self.geometry.heads
            spread = torch.linspace(0.0, math.log(self.slowest), heads, dtype=torch.float64)
            with torch.no_grad():
                self.gate.bias.copy_(-torch.log(torch.expm1(torch.exp(-spread))))

    def observe(self, x: Tensor) -> Tensor:
        """``sum_{l<=n} ln f_l``, float64 ``[B, H, N]``."""
        logs = F.logsigmoid(self.gate(x.to(self.gate.weight.dtype)))
        return logs.double().cumsum(dim=1).transpose(1, 2)

    def decay(self, observed: Tensor) -> Tensor:
        return observed

    def score(
        self, scores: Tensor, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor,
        observed: Any = None,
    ) -> Tensor:  # fmt: skip
        decay = observed[:, :, positions_q, None] - observed[:, :, None, positions_k]
        out: Tensor = scores + decay.to(scores.dtype)
        return out
