"""Learned absolute positions: ``x_i += e_i``, one vector per position, none past the last.

Source: Gehring et al., "Convolutional Sequence to Sequence Learning" (ICML 2017, arXiv 1705.03122),
Section 3.1; GPT-2's and GPT-NeoX's ``position_embeddings`` (``megatron/model/word_embeddings.py``).

e ``[P, W]`` for the P positions 0..P-1 (``positions``; the trained length unless given) starts
N(0, 0.02^2); P W parameters. A longer window is refused: positions neither wrap nor repeat.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


class Learned(Scheme):
    def __init__(self, geometry: Geometry, *, positions: int = 0) -> None:
        super().__init__(geometry)
        if positions < 0:
            raise UserError(f"learned: positions={positions} must be at least 1 (or 0: the trained length)")
        self.max_positions = positions or geometry.train_length
        self.table = nn.Parameter(torch.zeros(self.max_positions, geometry.width))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.table, 0.0, 0.02, generator=generator)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        assert self.max_positions is not None
        if positions.numel() > self.max_positions:
            raise UserError(
                f"learned: {positions.numel()} positions asked for, the model has {self.max_positions}"
            )
        return x + self.table.to(x.dtype)[positions]
