"""YaRN: low frequencies interpolated, high ones kept, a ramp between, and scores sharpened.

Source: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (arXiv 2309.00071),
Sections 3.2-3.4; code jquesnelle/yarn, ``LlamaYaRNScaledRotaryEmbedding.py``; transformers'
``modeling_rope_utils.py`` ("yarn").

    f(r)     = d ln(L / (2 pi r)) / (2 ln base)            the pair that turns r times within L
    low      = max(floor f(beta_fast), 0);  high = min(ceil f(beta_slow), d - 1)
    gamma_t  = 1 - clamp((t - low) / (high - low), 0, 1)   (high + 0.001 where the two are equal)
    theta'_t = (1 - gamma_t) theta_t / s + gamma_t theta_t
    cos, sin times m(1),  m(c) = 0.1 c ln s + 1

``factor`` s, ``original`` L (tokens; the trained length unless given), ``beta_fast`` 32, ``beta_slow`` 1; d
counts the components that turn. As in transformers, ``attention_factor`` replaces m(1), or
``mscale`` a with ``mscale_all_dim`` b do by m(a) / m(b) (DeepSeek's), and ``truncate=false`` leaves out floor
and ceil. Where low exceeds high (neither beta within the pairs) there is no ramp, and that is refused: the
published code then leaves all frequencies as they were, or divides them all. s is fixed, so losses do not
depend on later tokens. ``base`` and ``fraction`` as in rope. Usually applied to a trained model; it can also
be trained. No parameters.
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
        beta_slow: float = 1.0, attention_factor: float = 0.0, mscale: float = 0.0,
        mscale_all_dim: float = 0.0, truncate: bool = True, base: float = 10000.0, fraction: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(geometry, "rope-yarn", base, fraction)
        self.factor, self.original = self.stretched(factor, original)
        if not 0 < beta_slow < beta_fast < math.inf:
            raise UserError(
                f"rope-yarn: beta_fast={beta_fast} must be finite and exceed beta_slow={beta_slow}, "
                "and that exceed 0"
            )
        low, high = self._pair(beta_fast), self._pair(beta_slow)
        if truncate:
            low, high = math.floor(low), math.ceil(high)
        self.low, self.high = max(low, 0), min(high, self.turned - 1)
        if self.low > self.high:
            raise UserError(
                f"rope-yarn: no pair turns between beta_slow={beta_slow} and beta_fast={beta_fast} times "
                f"within original={self.original} tokens at base={base}; choose others"
            )
        self.attention_factor = self._sharpening(attention_factor, mscale, mscale_all_dim)

    def _sharpening(self, given: float, mscale: float, mscale_all_dim: float) -> float:
        for name, value in (
            ("attention_factor", given), ("mscale", mscale), ("mscale_all_dim", mscale_all_dim),
        ):  # fmt: skip
            if not 0 <= value < math.inf:
                raise UserError(f"rope-yarn: {name}={value} must be positive and finite")
        if bool(mscale) != bool(mscale_all_dim) or (given and mscale):
            raise UserError("rope-yarn: give attention_factor, or both mscale and mscale_all_dim, or neither")
        scale = 0.1 * math.log(self.factor)
        if mscale:
            return (mscale * scale + 1) / (mscale_all_dim * scale + 1)
        return given or scale + 1

    def _pair(self, rotations: float) -> float:
        ratio = self.original / (2 * math.pi * rotations)
        return self.turned * math.log(ratio) / (2 * math.log(self.base))

    def frequencies(self, length: int, device: torch.device) -> Tensor:
        theta = super().frequencies(length, device)
        t = torch.arange(self.turned // 2, dtype=torch.float64, device=device)
        span = self.high - self.low or 0.001
        interpolated = ((t - self.low) / span).clamp(0, 1)
        return theta * (1 - interpolated) + theta / self.factor * interpolated
