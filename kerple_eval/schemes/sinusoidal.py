"""Sinusoidal absolute positions: ``x_i += [sin(i theta), cos(i theta)]`` over the hidden size W.

Source: Vaswani et al., "Attention Is All You Need" (2017), Section 3.5, in GPT-NeoX's layout (all
sines, then all cosines: ``megatron/model/positional_embeddings.py``, ``SinusoidalPositionalEmbedding``).

``theta_t = 10000^(-2 t / W)``, t = 0..W/2-1. Angles are formed in float64. Defined for every
position; no parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


class Sinusoidal(Scheme):
    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        if geometry.width % 2:
            raise UserError(f"sinusoidal: hidden size {geometry.width} is odd; it must be even")

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        width = self.geometry.width
        t = torch.arange(0, width, 2, dtype=torch.float64, device=x.device)
        angles = positions[:, None] * 10000.0 ** (-t / width)
        return x + torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1).to(x.dtype)
