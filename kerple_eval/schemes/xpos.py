"""xPos: RoPE whose scores decay with distance, each pair at its own rate.

Source: Sun et al., "A Length-Extrapolatable Transformer" (ACL 2023, arXiv 2212.10554), Eq. (12) and
Algorithm 1; code microsoft/torchscale, ``torchscale/component/xpos_relative_position.py``.

Pair t = 0..d/2-1 turns by theta_t as in RoPE, and is scaled by ``zeta_t^(i / S)`` in query i and
``zeta_t^(-j / S)`` in key j, so that its part of the score carries ``zeta_t^(D / S)``, with
``zeta_t = (2 t + 0.4 d) / (1.4 d)`` and ``scale_base`` S = 512. The released code centres the exponents at
half the window's length, which cancels; here they are not, so that losses do not depend on what
follows. Scales are formed in float64. A float32 holds them up to ``S 80 / ln(1 / zeta_0)`` tokens (32,695
at S = 512); longer windows are refused, and so is an S that does not reach the trained length. A float16
holds a tenth of that, ``S 8 / ln(1 / zeta_0)`` tokens (3,269), which only a pass in it can refuse.
Half-split layout; no parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import Geometry, UserError

EXPONENT = 80.0  # e^80 = 5.5e34, well within float32 and bfloat16
HALF_EXPONENT = 8.0  # e^8 = 2981 of float16's 65504, and its inverse is still a normal number


class XPos(Rotary):
    def __init__(self, geometry: Geometry, *, base: float = 10000.0, scale_base: float = 512.0) -> None:
        super().__init__(geometry, "xpos", base, 1.0)
        if not 0 < scale_base < math.inf:
            raise UserError(f"xpos: scale_base={scale_base} must be positive")
        self.scale_base = scale_base
        self.max_positions = self._reach(EXPONENT)
        if self.max_positions < geometry.train_length:
            raise UserError(
                f"xpos: scale_base={scale_base} reaches {self.max_positions} tokens, fewer than the trained "
                f"{geometry.train_length}; raise it"
            )

    def _reach(self, exponent: float) -> int:
        """Tokens whose scales stay within ``e^exponent``."""
        return int(self.scale_base * exponent / math.log(1.4 / 0.4))

    def rotate(self, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> tuple[Tensor, Tensor]:
        reach = self._reach(HALF_EXPONENT)
        if q.dtype == torch.float16 and positions_k.numel() > reach:
            raise UserError(
                f"xpos: its scales leave float16 beyond {reach} tokens, and the window has "
                f"{positions_k.numel()}; take --dtype bfloat16 or float32"
            )
        q, k = super().rotate(q, k, positions_q, positions_k)
        return q * self._scale(q, positions_q, 1), k * self._scale(k, positions_k, -1)

    def _scale(self, x: Tensor, positions: Tensor, sign: int) -> Tensor:
        """``[n, d]`` in x's dtype."""
        dim = x.shape[-1]
        t = 2 * torch.arange(dim // 2, dtype=torch.float64, device=x.device)
        zeta = (t + 0.4 * dim) / (1.4 * dim)
        scale = zeta ** (sign * positions[:, None].double() / self.scale_base)
        return scale.repeat(1, 2).to(x.dtype)
