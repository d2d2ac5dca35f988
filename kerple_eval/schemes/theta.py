"""RoPE with another base, "adjusted base frequency": ``theta_t = theta^(-2 t / d)``.

Source: Xiong et al., "Effective Long-Context Scaling of Foundation Models" (arXiv 2309.16039), Section 4.1
(RoPE ABF), who raise the base from 10,000 to 500,000.

``theta`` takes the place of the trained base, whatever that was; every frequency but the highest falls. As
``extend=theta`` it is applied to a trained model, best before training on at the longer length; it can be
trained from the beginning too (the same as ``rope:base=500000``). ``fraction`` as in rope. No parameters.
"""

from __future__ import annotations

import math
from typing import ClassVar

from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import Geometry, UserError


class Theta(Rotary):
    needs_factor: ClassVar[bool] = False

    def __init__(self, geometry: Geometry, *, theta: float = 500000.0, fraction: float = 1.0) -> None:
        if not 1 < theta < math.inf:
            raise UserError(f"theta: theta={theta} must be greater than 1 and finite")
        super().__init__(geometry, "theta", theta, fraction)
