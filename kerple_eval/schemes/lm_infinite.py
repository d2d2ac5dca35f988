"""LM-Infinite: the first keys and the nearest ones, no distance above a limit.

Source: Han et al., "LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models"
(NAACL 2024, arXiv 2308.16137), Section 4; code Glaciohound/LM-Infinite, ``models/lambda_attention.py``.

A query i sees the first ``start`` keys and those at D = i - j < ``recent`` (the Lambda-shaped mask). The
latter keep their distances; one of the first keys at D >= ``recent`` is put at the distance ``limit``, as in
that code (``local_branch``, ``limit_distance``). ``recent`` and ``limit`` (tokens) are the trained length
unless given, ``start`` is 10. A modifier of relative schemes, applied to a trained model; no parameters;
prefix-invariant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kerple_eval.schemes.base import Move, Scheme
from kerple_eval.types import Geometry, UserError


class LmInfinite(Scheme):
    def __init__(self, geometry: Geometry, *, recent: int = 0, start: int = 10, limit: int = 0) -> None:
        super().__init__(geometry)
        if min(recent, start, limit) < 0:
            raise UserError(
                f"lm-infinite: recent={recent}, start={start}, limit={limit} are counts of tokens: 0 or more"
            )
        self.recent = recent or geometry.train_length
        self.start = start
        self.limit = limit or geometry.train_length

    def visible(self, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        near = positions_q[:, None] - positions_k < self.recent
        return near | (positions_k < self.start)

    def masks(self) -> list[tuple[int, int]]:
        return [(self.recent, self.start)]

    def remap(self, positions_q: Tensor, positions_k: Tensor) -> list[Move]:
        far = positions_q[:, None] - positions_k >= self.recent
        return [(far, torch.full_like(positions_q, self.limit), torch.zeros_like(positions_k))]
