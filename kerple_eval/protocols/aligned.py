"""aligned:k=K[,every=E]: the same targets at every length; only the context varies.

For e = M, M + E, ... <= n - 1 the window ``(e - L, e, e - K + 1)``: the K targets ending at e, with
contexts L-K+1..L. M is the run's longest length and E = M unless given. K may not exceed the
shortest length (no context would be left), nor E (a target would be scored twice).
"""

from __future__ import annotations

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import UserError, Window


class Aligned(Protocol):
    depends_on_longest = True

    def __init__(self, *, k: int, every: int | None = None) -> None:
        if k < 1:
            raise UserError(f"aligned: k={k} must be at least 1")
        if every is not None and every < k:
            raise UserError(
                f"aligned: every={every} is below k={k}, which would score targets twice; use every >= {k}"
            )
        self.k = k
        self.every = every

    def check(self, lengths: list[int]) -> None:
        if self.k > min(lengths):
            raise UserError(
                f"aligned: k={self.k} exceeds the shortest length {min(lengths)}; use k <= {min(lengths)}"
            )

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        return [Window(e - length, e, e - self.k + 1) for e in range(longest, n, self.every or longest)]
