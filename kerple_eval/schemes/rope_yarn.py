"""YaRN: low frequencies interpolated, high ones kept, a ramp between, and scores sharpened.

Source: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (arXiv 2309.00071),
Sections 3.2-3.4; code jquesnelle/yarn, ``LlamaYaRNScaledRotaryEmbedding.py``; transformers'
``modeling_rope_utils.py`` ("yarn").

    f(r)     = d ln(L / (2 pi r)) / (2 ln base)            the pair that turns r times within L
    low      = max(floor f(beta_fast), 0);  high = min(ceil f(beta_slow), d - 1)
    gamma_t  = 1 - clamp((t - low) / (high - low), 0, 1)   (high + 0.001 where the two are equal)
    theta'_t = (1 - gamma_t) theta_t / s + gamma_t theta_t
    cos, sin times (0.1 ln s + 1), unless ``attention_factor`` says otherwise

``factor`` s, ``original`` L (tokens; the trained length unless given), beta_fast 32, beta_slow 1; d counts
the components that turn. s is fixed, so losses do not depend on what follows. ``base`` and ``fraction`` as in
rope. Made to be laid on a trained model; it can also be trained. No parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import Geometry, UserError


class RopeYarn(Rotary):
    def __init__(
        self, geometry: Geometry, *, factor: float = 8.0, original: int = 0, beta_fast: float = 32.0,
        beta_slow: float = 1.0, attention_factor: float = 0.0, base: float = 10000.0, fraction: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(geometry, "rope-yarn", base, fraction)
        self.factor, self.original = self.stretched(factor, original)
        if not beta_fast > beta_slow > 0:
            raise UserError(
                f"rope-yarn: beta_fast={beta_fast} must exceed beta_slow={beta_slow}, and that must exceed 0"
            )
        if not 0 <= attention_factor < math.inf:
            raise UserError(f"rope-yarn: attention_factor={attention_factor} must be positive")
        low, high = math.floor(self._pair(beta_fast)), math.ceil(self._pair(beta_slow))
        self.low, self.high = max(low, 0), min(high, self.turned - 1)
        self.attention_factor = attention_factor or 0.1 * math.log(self.factor) + 1

    def _pair(self, rotations: float) -> float:
        ratio = self.original / (2 * math.pi * rotations)
        return self.turned * math.log(ratio) / (2 * math.log(self.base))

    def frequencies(self, length: int, device: torch.device) -> Tensor:
        theta = super().frequencies(length, device)
        t = torch.arange(self.turned // 2, dtype=torch.float64, device=device)
        span = self.high - self.low or 0.001
        interpolated = ((t - self.low) / span).clamp(0, 1)
        return theta * (1 - interpolated) + theta / self.factor * interpolated
