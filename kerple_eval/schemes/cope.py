"""CoPE: positions counted by content, interpolated between learned position vectors.

Source: Golovneva et al., "Contextual Position Encoding: Learning to Count What's Important" (arXiv
2405.18719), Eq. (3)-(5); code facebookresearch/RAM, ``projects/cope/src/cope/context_position.py``.

    g_il = sigmoid(q_i k_l / sqrt(d)),   p_ij = min(sum_{l=j..i} g_il, P - 1)
    logit_ij = (q_i k_j + z_i(p_ij)) / sqrt(d),   z_i(p) between q_i e[floor p] and q_i e[ceil p], linearly

e ``[d, P]``, shared by the heads, one a layer (d P a layer), starts at 0; P = 64 ``positions``. The code's
default divides both terms by sqrt(d), as here. A row counts over its own keys alone, so losses do not
depend on later tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


class Cope(Scheme):
    per_layer: ClassVar[bool] = True

    def __init__(self, geometry: Geometry, *, positions: int = 64) -> None:
        super().__init__(geometry)
        if positions < 2:
            raise UserError(f"cope: positions={positions} must be at least 2")
        self.positions = positions
        self.table = nn.Parameter(torch.zeros(geometry.head_dim, positions))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.zeros_(self.table)

    def score(
        self, scores: Tensor, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor,
        observed: Any = None,
    ) -> Tensor:  # fmt: skip
        gates = torch.sigmoid(scores).masked_fill(positions_k > positions_q[:, None], 0.0)
        counted = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=self.positions - 1)
        below = counted.nan_to_num().long()  # NaN stays in ``counted``, and must not become an index
        each = (q.to(scores.dtype) @ self.table.to(scores.dtype)) * q.shape[-1] ** -0.5  # [B, H, Q, P]
        rise = F.pad(each.diff(dim=-1), (0, 1))
        out: Tensor = scores + each.gather(-1, below) + rise.gather(-1, below) * (counted - below)
        return out
