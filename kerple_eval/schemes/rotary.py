"""What RoPE and its extensions share: frequencies, turning of vectors, and the checks of their options.

Half-split ("rotate_half") layout of GPT-NeoX and Llama: for pair t = 0..d/2-1 with frequency theta_t, the
components (x_t, x_{t+d/2}) of position i turn by the angle ``i theta_t``. Angles are formed in float64 (at
position 16384 a float32 angle is off by up to 1e-3 radian) and their cosines and sines cast to the vectors'
dtype. With ``fraction`` (GPT-NeoX's ``rotary_pct``) below 1 only the first ``r = int(fraction d)``
components of each head turn, with r instead of d; the others pass unchanged.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError

#: Neither a factor nor a length in tokens is more: beyond it powers of them leave float64.
MOST = 10**9


def apply_rotation(x: Tensor, angles: Tensor, factor: float = 1.0) -> Tensor:
    """Turn ``x [..., n, d]`` by ``angles [n, d/2]`` (float64), half-split layout, and scale it."""
    cos, sin = (torch.cos(angles) * factor).to(x.dtype), (torch.sin(angles) * factor).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def frequencies(dim: int, base: float, device: torch.device) -> Tensor:
    """``theta_t = base^(-2 t / dim)``, float64 ``[dim/2]``."""
    t = torch.arange(0, dim, 2, dtype=torch.float64, device=device)
    return base ** (-t / dim)


class Rotary(Scheme):
    """A rotation whose frequencies a subclass may change, also by the window's length."""

    needs_factor: ClassVar[bool] = True

    #: cos and sin are multiplied by it, so that scores are by its square.
    attention_factor = 1.0

    def __init__(self, geometry: Geometry, name: str, base: float, fraction: float) -> None:
        super().__init__(geometry)
        if not 0 < fraction <= 1:
            raise UserError(f"{name}: fraction={fraction} must be above 0 and at most 1")
        if fraction == 1 and geometry.head_dim % 2:
            raise UserError(f"{name}: head dim {geometry.head_dim} is odd; pairs need an even one")
        self.turned = int(geometry.head_dim * fraction)
        if self.turned % 2 or not self.turned:
            raise UserError(
                f"{name}: fraction={fraction} of head dim {geometry.head_dim} is {self.turned}; "
                "pairs need an even number above 0"
            )
        if not 1 < base < math.inf:
            raise UserError(f"{name}: base={base} must be greater than 1 and finite")
        self.name = name
        self.base = base

    def stretched(self, factor: float, original: int) -> tuple[float, int]:
        """``factor`` and the original length (0: the trained one), checked."""
        if not 1 <= factor <= MOST:
            raise UserError(f"{self.name}: factor={factor} must be at least 1 and at most {MOST:,}")
        if not 0 <= original <= MOST:
            raise UserError(
                f"{self.name}: original={original} must be at least 1 token (or 0: the trained) "
                f"and at most {MOST:,}"
            )
        return factor, original or self.geometry.train_length

    def frequencies(self, length: int, device: torch.device) -> Tensor:
        """theta ``[turned/2]``, float64, for a window of ``length`` tokens."""
        return frequencies(self.turned, self.base, device)

    def rotate(self, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> tuple[Tensor, Tensor]:
        theta = self.frequencies(positions_k.numel(), q.device)
        return self._turn(q, positions_q[:, None] * theta), self._turn(k, positions_k[:, None] * theta)

    def _turn(self, x: Tensor, angles: Tensor) -> Tensor:
        if self.turned == x.shape[-1]:
            return apply_rotation(x, angles, self.attention_factor)
        head = apply_rotation(x[..., : self.turned], angles, self.attention_factor)
        return torch.cat([head, x[..., self.turned :]], dim=-1)
