"""RoPE: queries and keys are rotated by their position, so that scores depend on D alone.

Source: Su et al., "RoFormer" (arXiv 2104.09864), Eq. (34); half-split ("rotate_half") layout of
GPT-NeoX and Llama.

For pair t = 0..d/2-1: ``theta_t = base^(-2 t / d)``; components (x_t, x_{t+d/2}) of position i turn
by the angle ``i theta_t``. Angles are formed in float64 (at position 16384 a float32 angle is off
by up to 1e-3 radian) and their cosines and sines cast to the vectors' dtype. No parameters.

With ``fraction`` (GPT-NeoX's ``rotary_pct``) below 1, only the first ``r = int(fraction d)``
components of each head turn, with r in d's place above; the others pass unchanged.
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
    def __init__(self, geometry: Geometry, *, base: float = 10000.0, fraction: float = 1.0) -> None:
        super().__init__(geometry)
        if not 0 < fraction <= 1:
            raise UserError(f"rope: fraction={fraction} must be above 0 and at most 1")
        if fraction == 1 and geometry.head_dim % 2:
            raise UserError(f"rope: head dim {geometry.head_dim} is odd; pairs need an even one")
        self.turned = int(geometry.head_dim * fraction)
        if self.turned % 2 or not self.turned:
            raise UserError(
                f"rope: fraction={fraction} of head dim {geometry.head_dim} is {self.turned}; "
                "pairs need an even number above 0"
            )
        if not base > 1:
            raise UserError(f"rope: base={base} must be greater than 1")
        self.base = base

    def rotate(self, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> tuple[Tensor, Tensor]:
        theta = frequencies(self.turned, self.base, q.device)
        return self._turn(q, positions_q[:, None] * theta), self._turn(k, positions_k[:, None] * theta)

    def _turn(self, x: Tensor, angles: Tensor) -> Tensor:
        if self.turned == x.shape[-1]:
            return apply_rotation(x, angles)
        return torch.cat([apply_rotation(x[..., : self.turned], angles), x[..., self.turned :]], dim=-1)
