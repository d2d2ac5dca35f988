"""RoPE: queries and keys are rotated by their position, so that scores depend on D alone.

Source: Su et al., "RoFormer" (arXiv 2104.09864), Eq. (34); half-split ("rotate_half") layout of
GPT-NeoX and Llama (:mod:`kerple_eval.schemes.rotary`).

For pair t = 0..d/2-1: ``theta_t = base^(-2 t / d)``. No parameters.
"""

from __future__ import annotations

from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import Geometry


class Rope(Rotary):
    def __init__(self, geometry: Geometry, *, base: float = 10000.0, fraction: float = 1.0) -> None:
        super().__init__(geometry, "rope", base, fraction)
