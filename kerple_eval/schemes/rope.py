"""RoPE: queries and keys are rotated by their position, so that scores depend on D alone.

Source: Su et al., "RoFormer" (arXiv 2104.09864), Eq. (34); half-split ("rotate_half") layout of
GPT-NeoX and Llama.

For pair t = 0..d/2-1: ``theta_t = base^(-2 t / d)``; components (x_t, x_{t+d/2}) of position i turn
by the angle ``i theta_t``. Angles are formed in float64 (at position 16384 a float32 angle is off
by up to 1e-3 radian) and their cosines and sines cast to the vectors' dtype. No parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


def apply_rotation(x: Tensor, angles: Tensor) -> Tensor:
    """Turn ``x [..., n, d]`` by ``angles [n, d/2]`` (float64), half-split layout."""
    cos, sin = torch.cos(angles).to(x.dtype), torch.sin(angles).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def frequencies(dim: int, base: float, device: torch.device) -> Tensor:
    """``theta_t = base^(-2 t / dim)``, float64 ``[dim/2]``."""
    t = torch.arange(0, dim, 2, dtype=torch.float64, device=device)
    return base ** (-t / dim)


class Rope(Scheme):
    def __init__(self, geometry: Geometry, *, base: float = 10000.0) -> None:
        super().__init__(geometry)
        if geometry.head_dim % 2:
            raise UserError(f"rope: head dim {geometry.head_dim} is odd; pairs need an even one")
        if not base > 1:
            raise UserError(f"rope: base={base} must be greater than 1")
        self.base = base

    def rotate(self, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> tuple[Tensor, Tensor]:
        theta = frequencies(self.geometry.head_dim, self.base, q.device)
        return (
            apply_rotation(q, positions_q[:, None] * theta),
            apply_rotation(k, positions_k[:, None] * theta),
        )
