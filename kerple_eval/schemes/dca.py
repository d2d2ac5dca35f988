"""Dual chunk attention (DCA): positions start anew in every chunk, so that no distance exceeds a chunk.

Source: An et al., "Training-Free Long-Context Scaling of Large Language Models" (ICML 2024, arXiv
2402.17463), Eq. (2)-(6); code HKUNLP/ChunkLlama, ``chunkllama_attn_replace.py``, commit 847ae71.

With chunks of s = c - w tokens a key j stands at ``j mod s`` always, a query i at

    i mod s               for the keys of its own chunk (their distance stays i - j),
    min(i mod s + s, c)   for those of the chunk before it, so that the nearest w keep their distances,
    min(2 s - 1, c)       for all chunks before that.

``chunk`` c (tokens) is 3/4 of the trained length unless given, ``local`` w an eighth of it, as in that code
(which also sharpens by the length of the text, "not used in the paper", and so does not do here). A modifier
of relative schemes, applied to a trained model; no parameters; prefix-invariant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kerple_eval.schemes.base import Move, Scheme
from kerple_eval.types import Geometry, UserError


class DualChunkAttention(Scheme):
    def __init__(self, geometry: Geometry, *, chunk: int = 0, local: int = 0) -> None:
        super().__init__(geometry)
        self.chunk = chunk or geometry.train_length * 3 // 4
        local = local or max(1, geometry.train_length // 8)
        self.step = self.chunk - local
        if local < 0 or self.step < 1:
            raise UserError(
                f"dca: local={local} must be at least 1 and less than chunk={self.chunk} (0: an eighth and "
                f"three quarters of the trained length, {geometry.train_length})"
            )

    def remap(self, positions_q: Tensor, positions_k: Tensor) -> list[Move]:
        chunks = positions_q[:, None] // self.step - positions_k // self.step
        within_q, within_k = positions_q % self.step, positions_k % self.step
        successive = (within_q + self.step).clamp(max=self.chunk)
        farthest = torch.full_like(positions_q, min(2 * self.step - 1, self.chunk))
        return [(chunks == 1, successive, within_k), (chunks > 1, farthest, within_k)]
