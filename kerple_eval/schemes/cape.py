"""CAPE: sinusoidal positions, shifted and scaled at random while training.

Source: Likhomanenko et al., "CAPE: Encoding Relative Positions with Continuous Augmented Positional
Embeddings" (NeurIPS 2021, arXiv 2106.03143), Section 3; code gcambara/cape, ``cape/cape.py``.

``x_i += [sin(p_i theta), cos(p_i theta)]`` over the hidden size W, ``theta_t = 10000^(-2 t / W)``, with
``p_i = (i + Delta + delta_i) lambda`` in training: Delta ~ U(-``shift``, ``shift``) and ln lambda ~
U(-ln ``scaling``, ln ``scaling``) once a sequence, delta_i ~ U(-``jitter``, ``jitter``) a token. In
evaluation ``p_i = i``. ``normalize`` subtracts the mean position of the window, before scaling; a loss
then depends on how long its window is. The paper's values differ by task; here ``shift`` (tokens) is the
trained length unless given, ``jitter`` 0.5 and ``scaling`` 1.1. Angles in float64; defined for every
position; no parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


class Cape(Scheme):
    def __init__(
        self, geometry: Geometry, *, shift: float = -1.0, jitter: float = 0.5, scaling: float = 1.1,
        normalize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(geometry)
        if geometry.width % 2:
            raise UserError(f"cape: hidden size {geometry.width} is odd; it must be even")
        if not (shift == -1 or 0 <= shift < math.inf):
            raise UserError(f"cape: shift={shift} must be 0 or more tokens (or -1: the trained length)")
        if not 0 <= jitter < math.inf or not 1 <= scaling < math.inf:
            raise UserError(f"cape: jitter={jitter} must be 0 or more and scaling={scaling} at least 1")
        self.shift = float(geometry.train_length) if shift == -1 else shift
        self.jitter = jitter
        self.scaling = scaling
        self.normalize = normalize
        self.prefix_invariant = not normalize
        self.generator: torch.Generator | None = None

    def begin_step(self, generator: torch.Generator) -> None:
        self.generator = generator

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        width = self.geometry.width
        t = torch.arange(0, width, 2, dtype=torch.float64, device=x.device)
        angles = self.continuous_positions(positions, x.shape[0])[..., None] * 10000.0 ** (-t / width)
        return x + torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1).to(x.dtype)

    def continuous_positions(self, positions: Tensor, batch: int) -> Tensor:
        """Continuous positions, float64 ``[N]``, or ``[B, N]`` where they are augmented."""
        continuous = positions.double()
        if self.normalize:
            continuous = continuous - continuous.mean()
        if not self.training or self.generator is None:
            return continuous

        def uniform(*shape: int) -> Tensor:
            drawn = torch.rand(*shape, dtype=torch.float64, generator=self.generator)
            return (2 * drawn - 1).to(positions.device)

        moved = continuous + self.shift * uniform(batch, 1) + self.jitter * uniform(batch, len(positions))
        return moved * torch.exp(math.log(self.scaling) * uniform(batch, 1))
