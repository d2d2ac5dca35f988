"""full-context: non-overlapping windows; every target 1..n-1 once, contexts 1..L.

Windows ``(s, min(s + L, n - 1), s + 1)`` for s = 0, L, 2L, ... < n - 1; the last may be short.
The KERPLE paper's protocol (Section 5.1), here within documents. Known bias: at a longer L fewer
targets stand at the start of a window with little context, so perplexity falls with L even for a
model that uses no more than a few tokens ("early token curse", Press et al. 2022, Appendix B).
"""

from __future__ import annotations

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import Window


class FullContext(Protocol):
    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        return [Window(s, min(s + length, n - 1), s + 1) for s in range(0, n - 1, length)]
