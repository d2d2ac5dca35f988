"""last:k=K: the last K targets of each whole non-overlapping window, contexts L-K+1..L.

The whole windows of full-context with ``first_target = stop - K + 1``; K > L is refused. The number
of targets falls with L. DAPE (Zheng et al. 2024, K = 256) and FIRE report this.
"""

from __future__ import annotations

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import UserError, Window


class Last(Protocol):
    def __init__(self, *, k: int) -> None:
        if k < 1:
            raise UserError(f"last: k={k} must be at least 1")
        self.k = k

    def check(self, lengths: list[int]) -> None:
        if self.k > min(lengths):
            raise UserError(f"last: k={self.k} exceeds length {min(lengths)}; use k <= {min(lengths)}")

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        return [Window(s, s + length, s + length - self.k + 1) for s in range(0, n - length, length)]
