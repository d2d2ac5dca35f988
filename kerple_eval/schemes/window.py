"""Windowed attention: a query sees the keys at ``D = i - j < width`` alone.

Source: the "windowed" baseline of Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS 2022, arXiv 2205.09921),
Figure 5; Beltagy et al., "Longformer" (arXiv 2004.05150), Section 3.1.

A modifier: ``kerple-log,window=512`` is KERPLE-log-windowed@512. ``width`` (tokens) is the trained
length unless given. No parameters; applied to a trained model it changes no weight.
"""

from __future__ import annotations

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


class SlidingWindowMask(Scheme):
    def __init__(self, geometry: Geometry, *, width: int = 0) -> None:
        super().__init__(geometry)
        if width < 0:
            raise UserError(f"window: width={width} must be at least 1 token (or 0: the trained length)")
        self.window = width or geometry.train_length
