"""Sandwich: the sinusoids' own inner products as a bias, ``(sum_t cos(D omega_t) - n/2) / (8 h / H)``.

Source: Chi, Fan, Rudnicky, Ramadge, "Dissecting Transformer Length Extrapolation via the Lens of Receptive
Field Analysis" (ACL 2023, arXiv 2212.10356), Eq. (5); code NVIDIA/NeMo,
``sandwich_relative_position_embedding.py``.

``omega_t = 10000^(-2 t / n)`` for t = 1..n/2, with ``dims`` n = 128 (even, at most 4096); heads h = 1..H
are compressed by 8 h / H. The subtracted n/2 makes it 0 at D = 0 (and softmax absorbs it). A function of
distance alone, added after the 1/sqrt(d) scaling; no parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError

MOST = 4096  # waves are formed at every distance at once


class Sandwich(Scheme):
    def __init__(self, geometry: Geometry, *, dims: int = 128) -> None:
        super().__init__(geometry)
        if not 2 <= dims <= MOST or dims % 2:
            raise UserError(f"sandwich: dims={dims} must be even, at least 2 and at most {MOST}")
        self.dims = dims

    def kernel(self, distance: Tensor) -> Tensor:
        heads = self.geometry.heads
        t = torch.arange(1, self.dims // 2 + 1, dtype=torch.float64, device=distance.device)
        omega = 10000.0 ** (-2 * t / self.dims)
        waves = torch.cos(distance.double()[:, None] * omega).sum(dim=1) - self.dims / 2
        h = torch.arange(1, heads + 1, dtype=torch.float64, device=distance.device)
        return (waves / (8 * h / heads)[:, None]).to(distance.dtype)
