"""RoPE with position interpolation: every frequency divided by the factor, ``theta_t / s``.

Source: Chen et al., "Extending Context Window of Large Language Models via Positional Interpolation"
(arXiv 2306.15595), Eq. (4); the same in transformers' ``modeling_rope_utils.py`` ("linear").

``factor`` s is fixed, not L over the trained length, so losses do not depend on later tokens. ``base`` and
``fraction`` as in rope. Usually applied to a trained model; it can also be trained. No parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import Geometry


class RopeLinear(Rotary):
    def __init__(
        self, geometry: Geometry, *, factor: float = 8.0, base: float = 10000.0, fraction: float = 1.0
    ) -> None:
        super().__init__(geometry, "rope-linear", base, fraction)
        self.factor, _ = self.stretched(factor, 0)

    def frequencies(self, length: int, device: torch.device) -> Tensor:
        return super().frequencies(length, device) / self.factor
