"""FIRE: a learned function of the distance, relative to how far the query could look back.

Source: Li et al., "Functional Interpolation for Relative Positions Improves Long Context Transformers"
(ICLR 2024, arXiv 2310.04418), Eq. (16)-(18); code chuanyang-Zheng/DAPE, ``DAPE.py`` (``FIRE``).

    b_h(i, j) = MLP_h(psi(D) / (psi(max(m T, i)) + 1e-6)),   psi(x) = ln(|c| x + 1)

MLP: 1 -> M -> H with ReLU, M = 32 ``units``. c starts at 0.1, the multiplier m at 1; T is ``threshold``
(tokens; the trained length unless given). Shared by all layers: 2 M + M H + H + 2 parameters. The
normaliser is the row's own position i, so losses do not depend on later tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.networks import Linear, reset_linear
from kerple_eval.types import Geometry, UserError

ELEMENTS = 1 << 24  # of the MLP's hidden layer formed at once


class Fire(Scheme):
    def __init__(self, geometry: Geometry, *, units: int = 32, threshold: int = 0) -> None:
        super().__init__(geometry)
        if units < 1 or threshold < 0:
            raise UserError(f"fire: units={units} and threshold={threshold} must be at least 1")
        self.units = units
        self.threshold = threshold or geometry.train_length
        self.c = nn.Parameter(torch.tensor(0.1))
        self.multiplier = nn.Parameter(torch.tensor(1.0))
        self.into = Linear(1, units)
        self.out = Linear(units, geometry.heads)

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.c, 0.1)
        nn.init.constant_(self.multiplier, 1.0)
        for layer in (self.into, self.out):
            reset_linear(layer, generator)

    def bias(self, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        rows = max(1, ELEMENTS // (self.units * len(positions_k)))
        parts = [self._rows(part, positions_k) for part in torch.split(positions_q, rows)]
        return torch.cat(parts, dim=1)

    def _rows(self, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        dtype = self.c.dtype
        distance = (positions_q[:, None] - positions_k).clamp(min=0).to(dtype)
        reach = torch.maximum(positions_q.to(dtype), (self.multiplier * self.threshold).abs())
        relative = self._psi(distance) / (self._psi(reach) + 1e-6)[:, None]
        hidden = torch.relu(self.into(relative[..., None]))
        out: Tensor = self.out(hidden)
        return out.permute(2, 0, 1)

    def _psi(self, x: Tensor) -> Tensor:
        return torch.log1p((self.c * x).abs())
