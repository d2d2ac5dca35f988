"""ReRoPE: neighbours at their distance, farther keys all at distance w (Leaky: w + (D - w) / k).

Source: Su, "Rectified Rotary Position Embeddings" (2023), code bojone/rerope, ``rerope_patch.py`` and
``leaky_rerope_patch.py``, commit 2cbd019 (which has k = 16 as ``scaling_factor``).

For D = i - j < w positions stay; for D >= w the query takes position w and the key position 0. With
``leak`` k > 1 (Leaky ReRoPE) the far pair has the distance ``w + (D - w) / k``; ``leaky-rerope`` is that
with k = 16, its author's "Leaky ReRoPE-w1024-k16". ``window`` w (tokens) is
half the trained length unless given. A modifier of relative schemes, applied to a trained model; no
parameters; prefix-invariant. The released code also sharpens queries beyond the trained length:
``rope,rerope=256,log-n=512`` applies both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kerple_eval.schemes.base import Move, Scheme
from kerple_eval.types import Geometry, UserError


class ReRope(Scheme):
    def __init__(self, geometry: Geometry, *, window: int = 0, leak: float = 0.0) -> None:
        super().__init__(geometry)
        if window < 0:
            raise UserError(f"rerope: window={window} must be at least 1 (or 0: half the trained length)")
        if leak and not 1 < leak < math.inf:
            raise UserError(f"rerope: leak={leak} must be above 1 (or 0: none)")
        self.near = window or max(1, geometry.train_length // 2)
        self.leak = leak

    def remap(self, positions_q: Tensor, positions_k: Tensor) -> list[Move]:
        far = positions_q[:, None] - positions_k >= self.near
        if not self.leak:
            return [(far, torch.full_like(positions_q, self.near), torch.zeros_like(positions_k))]
        start = self.near * (1 - 1 / self.leak)
        return [(far, positions_q.double() / self.leak + start, positions_k.double() / self.leak)]


class LeakyReRope(ReRope):
    def __init__(self, geometry: Geometry, *, window: int = 0, leak: float = 16.0) -> None:
        super().__init__(geometry, window=window, leak=leak)
