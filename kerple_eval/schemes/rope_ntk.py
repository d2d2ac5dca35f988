"""NTK-aware RoPE: a larger base, ``base' = base s^(d / (d - 2))``.

Source: bloc97, "NTK-Aware Scaled RoPE" (2023); Peng et al., "YaRN" (arXiv 2309.00071), Eq. (16); code
jquesnelle/yarn, ``scaled_rope/LlamaNTKScaledRotaryEmbedding.py``.

The lowest frequency is divided by ``factor`` s, the highest stays. d counts the components that turn, at
least 4. ``base`` and ``fraction`` as in rope. s is fixed, so losses do not depend on later tokens. Usually
applied to a trained model; it can also be trained. No parameters.
"""

from __future__ import annotations

import math

from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import Geometry, UserError


class RopeNtk(Rotary):
    def __init__(
        self, geometry: Geometry, *, factor: float = 8.0, base: float = 10000.0, fraction: float = 1.0
    ) -> None:
        super().__init__(geometry, "rope-ntk", base, fraction)
        self.factor, _ = self.stretched(factor, 0)
        if self.turned < 4:
            raise UserError(f"rope-ntk: {self.turned} turned components; d/(d-2) needs 4 or more")
        self.base *= self.factor ** (self.turned / (self.turned - 2))
        if self.base == math.inf:
            raise UserError(f"rope-ntk: base={base} times a power of factor={factor} is no finite number")
