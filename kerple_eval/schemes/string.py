"""STRING: far keys take nearer, better trained distances: D beyond S becomes D - S + W.

Source: An et al., "Why Does the Effective Context Length of LLMs Fall Short?" (ICLR 2025, arXiv 2410.18745),
Section 4, Eq. (4) and Algorithm 1; code HKUNLP/STRING, ``string_for_llama.py``.

For D = i - j < S positions stay; for D >= S the query takes position i - S + W and the key stays: the longest
S - W distances of a window do not occur, and those of a window of L tokens stay below L - S + W.
``shift`` S (tokens) is 0.33 of the trained length unless given, ``local`` W is 128, the code's, or half of S
where that is less. ``attention_factor`` multiplies queries and keys, so scores by its square: 1 as in the
paper; the code has 0.1 ln 2 + 1 = 1.0693. (In its first pass over a prompt that code counts a key at D = S
twice, while decoding once; here it is once.) A modifier of relative schemes, applied to a trained model; no
parameters; prefix-invariant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kerple_eval.schemes.base import Move, Scheme
from kerple_eval.types import Geometry, UserError


class ShiftedPositions(Scheme):
    def __init__(
        self, geometry: Geometry, *, shift: int = 0, local: int = 0, attention_factor: float = 1.0
    ) -> None:
        super().__init__(geometry)
        self.shift = shift or max(1, int(0.33 * geometry.train_length))
        self.local = local or max(1, min(128, self.shift // 2))
        if not 1 <= self.local <= self.shift:
            raise UserError(
                f"string: local={self.local} must be at least 1 and at most shift={self.shift} "
                f"(0: 0.33 of the trained length, {geometry.train_length})"
            )
        if not 0 < attention_factor < math.inf:
            raise UserError(f"string: attention_factor={attention_factor} must be positive")
        self.attention_factor = attention_factor

    def row_scale(self, positions_q: Tensor, keys: Tensor) -> Tensor | None:
        if self.attention_factor == 1:
            return None
        return torch.full_like(positions_q, self.attention_factor**2, dtype=torch.float64)[None]

    def remap(self, positions_q: Tensor, positions_k: Tensor) -> list[Move]:
        far = positions_q[:, None] - positions_k >= self.shift
        return [(far, positions_q - self.shift + self.local, positions_k)]
