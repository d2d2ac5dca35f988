"""What a positional scheme may say of how position enters attention.

Shapes: B batch, H heads, d head dim, Q queries, K keys, W hidden size. Positions are 0-based
int64; a query i attends to keys j <= i; the distance is D = i - j >= 0. A scheme is one module
shared by every layer. Each hook is a no-op unless the scheme needs it:

* ``embed(x [B, N, W], positions [N])``: changes the token embeddings.
* ``rotate(q [B, H, Q, d], k [B, H, K, d], positions_q [Q], positions_k [K])``.
* ``kernel(distance [n]) -> [H, n]``: added to the scaled scores; ``weight(distance [n]) -> [H, n]``
  multiplies the scaled scores first. Pure functions of distance: the fast path, O(H L) memory.
* ``bias(positions_q [Q], positions_k [K]) -> [H, Q, K]``: added, where absolute positions matter.
* ``score(scores [B, H, Q, K], q, k, positions_q, positions_k)``: where content matters.

``bias`` and ``score`` are called by query chunk. Distances arrive in float32, or in float64 when
the model runs in float64, never lower (the KERPLE release rounds them to bfloat16: distances above
256 collide there); kernels answer in the same dtype.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kerple_eval.types import Geometry


class Scheme(nn.Module):
    """Base of every positional scheme."""

    #: Closed intervals kept by projection (``project_``) at load and after each optimiser step;
    #: parameter name -> (lowest, highest), None for open. Stated here once; forward never clamps.
    constraints: ClassVar[dict[str, tuple[float | None, float | None]]] = {}

    #: Longest position the scheme has values for; None where it is defined for every position.
    max_positions: int | None = None

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw initial values; every random draw takes this generator."""

    @torch.no_grad()
    def project_(self) -> dict[str, int]:
        """Put constrained parameters back into their intervals; how many values moved, by name."""
        moved = {}
        for name, (lowest, highest) in self.constraints.items():
            parameter = self.get_parameter(name)
            before = parameter.clone()
            parameter.clamp_(min=lowest, max=highest)
            changed = int((parameter != before).sum())
            if changed:
                moved[name] = changed
        return moved

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x

    def rotate(self, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def kernel(self, distance: Tensor) -> Tensor | None:
        return None

    def weight(self, distance: Tensor) -> Tensor | None:
        return None

    def bias(self, positions_q: Tensor, positions_k: Tensor) -> Tensor | None:
        return None

    def score(self, scores: Tensor, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        return scores

    def implements(self, hook: str) -> bool:
        """Whether the class gives ``hook`` a meaning of its own."""
        return getattr(type(self), hook) is not getattr(Scheme, hook)
