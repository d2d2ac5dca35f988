"""Wall attention: every channel of a head forgets by its own gate, read from the text.

Source: Pai, Averbuch et al., "Wall Attention: Length Generalization With Diagonal Gates" (Tilde Research,
2026, blog.tilderesearch.com/blog/wall-attn); naive form in flash-linear-attention,
``fla/ops/wall_attn/naive.py``.

    logit_ij = sum_n q_in k_jn exp(sum_{l=j+1..i} g_ln) / sqrt(d),   g_l = ln sigmoid(W x_l + b)

x ``[W]`` are the layer's normed inputs, g ``[H, d]`` at each token, <= 0; FoX is one gate a head outside
the product. The gates' own form is not in the sources above: as in FoX here, with biases where the gates
alone decay over 1 .. ``slowest`` tokens (the trained length unless given), spread over a head's channels
in logarithm. W starts N(0, 0.02^2). Each layer has its own: W W + W a layer. Cumulative sums are formed in
float64. Losses do not depend on later tokens.
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

ROWS = 16  # queries whose scores are formed at once: within them decays are taken pair by pair


class Wall(Scheme):
    per_layer: ClassVar[bool] = True

    def __init__(self, geometry: Geometry, *, slowest: float = 0.0) -> None:
        super().__init__(geometry)
        if slowest and not 1 <= slowest < math.inf:
            raise UserError(f"wall: slowest={slowest} must be at least 1 token (or 0: the trained length)")
        self.slowest = slowest or geometry.train_length
        self.gate = Linear(geometry.width, geometry.heads * geometry.head_dim)

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.gate.weight, 0.0, 0.02, generator=generator)
        channels = self.geometry.head_dim
        spread = torch.linspace(0.0, math.log(self.slowest), channels, dtype=torch.float64)
        with torch.no_grad():
            self.gate.bias.copy_(-torch.log(torch.expm1(torch.exp(-spread))).repeat(self.geometry.heads))

    def observe(self, x: Tensor) -> Tensor:
        """``sum_{l<=n} g_l``, float64 ``[B, H, N, d]``."""
        batch, length, _ = x.shape
        sums = F.logsigmoid(self.gate(x.to(self.gate.weight.dtype))).double().cumsum(dim=1)
        return sums.view(batch, length, self.geometry.heads, -1).transpose(1, 2)

    def score(
        self, scores: Tensor, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor,
        observed: Any = None,
    ) -> Tensor:  # fmt: skip
        """Anew from q and k: what lies before a few rows through their first one, no exponent above 0."""
        dtype, scale = scores.dtype, q.shape[-1] ** -0.5
        sums_q, sums_k = observed[:, :, positions_q], observed[:, :, positions_k]
        out = []
        for start in range(0, len(positions_q), ROWS):
            rows = slice(start, start + ROWS)
            first = int(positions_q[start])
            anchor = sums_q[:, :, start : start + 1]
            decayed_q = q[:, :, rows].to(dtype) * (sums_q[:, :, rows] - anchor).exp().to(dtype)
            decayed_k = k[:, :, :first].to(dtype) * (anchor - sums_k[:, :, :first]).exp().to(dtype)
            near = slice(first, first + ROWS)
            pairs = sums_q[:, :, rows, None] - sums_k[:, :, None, near]  # above 0 in the future alone
            products = q[:, :, rows, None].to(dtype) * k[:, :, None, near].to(dtype)
            scores_near = (products * pairs.clamp(max=0).exp().to(dtype)).sum(-1)
            rest = scores[:, :, rows, first + ROWS :]  # in these rows' future
            out.append(torch.cat([decayed_q @ decayed_k.transpose(-1, -2), scores_near, rest], dim=-1))
        joined: Tensor = torch.cat(out, dim=2) * scale
        return joined
