"""T5 bias: ``logit_ij = q_i k_j / sqrt(d) + b[bucket(D), h]``, b learned, shared by all layers.

Source: Raffel et al., "Exploring the Limits of Transfer Learning" (JMLR 2020, arXiv 1910.10683),
Section 2.1; the causal bucket rule of mesh_tensorflow's ``_relative_position_bucket``
(``bidirectional=False``), as in transformers' ``modeling_t5.py``.

With R buckets (32), m = R/2 and the farthest distance M (128): each D < m has its own bucket;
``bucket = min(R - 1, m + floor(log(D / m) / log(M / m) * (R - m)))`` beyond. b ``[R, H]`` starts
N(0, 0.02^2) (the release's ``init_method``); R H parameters. ``scale`` multiplies the bias after
the lookup: 1 unless asked, sqrt(d) in GPT-NeoX (``rpe``, ``gpt2_model.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


def bucket_index(distance: Tensor, count: int, farthest: int) -> Tensor:
    """Bucket of each distance ``[n]`` -> int64 ``[n]``, in float64 throughout."""
    exact = count // 2
    d = distance.to(torch.float64)
    steps = torch.log(d.clamp(min=1) / exact) / math.log(farthest / exact) * (count - exact)
    # A distance exactly on a bucket's edge (an integer number of steps) must not fall into the
    # bucket before by a rounding error; 1e-9 is far less than the distance to any other integer D.
    far = exact + torch.floor(steps + 1e-9).to(torch.int64)
    return torch.where(d < exact, d.to(torch.int64), far.clamp(max=count - 1))


class T5(Scheme):
    def __init__(
        self, geometry: Geometry, *, buckets: int = 32, max_distance: int = 128, scale: float = 1.0
    ) -> None:
        super().__init__(geometry)
        if buckets < 4 or buckets % 2:
            raise UserError(f"t5: buckets={buckets} must be even and at least 4")
        if max_distance <= buckets // 2:
            raise UserError(f"t5: max_distance={max_distance} must exceed buckets/2={buckets // 2}")
        if not 0 < scale < math.inf:
            raise UserError(f"t5: scale={scale} must be positive")
        self.scale = scale
        self.buckets = buckets
        self.max_distance = max_distance
        self.relative_bias = nn.Parameter(torch.zeros(buckets, geometry.heads))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.relative_bias, 0.0, 0.02, generator=generator)

    def kernel(self, distance: Tensor) -> Tensor:
        index = bucket_index(distance, self.buckets, self.max_distance)
        return self.relative_bias.to(distance.dtype)[index].T * self.scale
