"""What modifiers share that give tokens other positions while training: one draw a step."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError

LONGER = 8  # times the trained length, unless said


class Augmenting(Scheme):
    """Positions below ``longest`` in training, 0 .. n - 1 in evaluation."""

    def __init__(self, geometry: Geometry, name: str, longest: int) -> None:
        super().__init__(geometry)
        self.longest = longest or LONGER * geometry.train_length
        if self.longest < geometry.train_length:
            raise UserError(
                f"{name}: longest={longest} is less than the trained length, {geometry.train_length} tokens"
            )
        self._seed: int | None = None

    @property
    def augments(self) -> bool:
        return self.training

    def begin_step(self, generator: torch.Generator) -> None:
        self._seed = int(torch.randint(2**62, (), generator=generator))

    def augmented(self, positions: Tensor) -> Tensor:
        if not self.training or self._seed is None:
            return positions
        if len(positions) > self.longest:
            raise UserError(f"longest={self.longest} positions are too few for {len(positions)} tokens")
        drawn = self.draw(len(positions), torch.Generator().manual_seed(self._seed))
        return drawn.to(positions.device)

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` increasing positions below ``longest``, int64; the same at every call of a step."""
