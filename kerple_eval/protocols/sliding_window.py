"""sliding-window:stride=S: every target 1..n-1 once, contexts L-S+1..L after the first window.

Windows ``(0, min(L, n - 1), 1)``, then ``(e - L, e, e - S + 1)`` for e = L + S, L + 2S, ...; the last
window ends at n - 1 and scores what is left. S > L would leave targets unscored and is refused.
Press et al. 2022 (ALiBi, S = 1), Peng et al. 2023 (YaRN, S = 256), the Hugging Face perplexity guide.
"""

from __future__ import annotations

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import UserError, Window


class SlidingWindow(Protocol):
    def __init__(self, *, stride: int) -> None:
        if stride < 1:
            raise UserError(f"sliding-window: stride={stride} must be at least 1")
        self.stride = stride

    def check(self, lengths: list[int]) -> None:
        shortest = min(lengths)
        if self.stride > shortest:
            raise UserError(
                f"sliding-window: stride={self.stride} exceeds length {shortest}, which would leave "
                f"targets unscored; use stride <= {shortest}"
            )

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        last = n - 1
        if last < 1:
            return []
        windows = [Window(0, min(length, last), 1)]
        while (reached := windows[-1].stop) < last:
            stop = min(reached + self.stride, last)
            windows.append(Window(stop - length, stop, reached + 1))
        return windows
