"""p-RoPE: RoPE without its lowest frequencies; only the share p of the pairs turns, the fastest ones.

Source: Barbero et al., "Round and Round We Go! What makes Rotary Positional Encodings useful?" (ICLR 2025,
arXiv 2410.06205), Section 6.1 and Appendix C; transformers' ``modeling_rope_utils.py`` ("proportional").

``theta_t = base^(-2 t / d)`` for t < int(p d / 2), and 0 for the rest, whose components compare contents at
any distance. ``p`` is 0.75 unless given; 1 is RoPE, 0 NoPE. (``rope:fraction=0.75`` turns as many components,
but at frequencies spread over all of RoPE's range.) No parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import Geometry, UserError


class PRope(Rotary):
    def __init__(self, geometry: Geometry, *, p: float = 0.75, base: float = 10000.0) -> None:
        super().__init__(geometry, "p-rope", base, 1.0)
        if not 0 <= p <= 1:
            raise UserError(f"p-rope: p={p} must be at least 0 and at most 1")
        self.pairs = int(p * geometry.head_dim // 2)

    def frequencies(self, length: int, device: torch.device) -> Tensor:
        theta = super().frequencies(length, device)
        return torch.where(torch.arange(len(theta), device=device) < self.pairs, theta, 0.0)
