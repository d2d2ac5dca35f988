"""StreamingLLM: the first keys stay as sinks beside a recent window, at their positions in the cache.

Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (ICLR 2024, arXiv
2309.17453), Section 3.2; code mit-han-lab/streaming-llm, ``kv_cache.py`` and ``pos_shift/modify_llama.py``.

The cache holds the first ``sinks`` s keys and the ``recent`` r ones before the query, which sees these and
itself. Positions are those in the cache: once it is full (i > s + r) the query takes position s + r and sink
j position j, while the recent keys keep their distances. ``sinks`` is 4; ``recent`` (tokens) is the trained
length less s and the query itself unless given, so that no distance is new. One dense pass, the states of
keys being those of a stream that never recomputes. A modifier of relative schemes, applied to a trained
model; no parameters; prefix-invariant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kerple_eval.schemes.base import Move, Scheme
from kerple_eval.types import Geometry, UserError


class StreamingSink(Scheme):
    def __init__(self, geometry: Geometry, *, recent: int = 0, sinks: int = 4) -> None:
        super().__init__(geometry)
        if min(recent, sinks) < 0:
            raise UserError(f"streaming-sink: recent={recent} and sinks={sinks} are counts: 0 or more")
        self.sinks = sinks
        self.recent = recent or geometry.train_length - sinks - 1
        if self.recent < 1:
            raise UserError(
                f"streaming-sink: {sinks} sinks leave no recent key of {geometry.train_length} trained; "
                "give recent=TOKENS"
            )

    def visible(self, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        near = positions_q[:, None] - positions_k <= self.recent
        return near | (positions_k < self.sinks)

    def masks(self) -> list[tuple[int, int]]:
        return [(self.recent + 1, self.sinks)]

    def remap(self, positions_q: Tensor, positions_k: Tensor) -> list[Move]:
        full = self.sinks + self.recent
        far = (positions_q > full)[:, None] & (positions_k < self.sinks)
        return [(far, torch.full_like(positions_q, full), positions_k)]
