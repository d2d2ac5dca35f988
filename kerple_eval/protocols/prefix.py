"""prefix: the first L tokens from the same starts at every length.

Starts s = 0, M, 2M, ... with s + M <= n - 1 (M the run's longest length), window ``(s, s + L, s + 1)``.
Where a model's losses do not depend on how many tokens follow (prefix-invariance), one pass at M
holds the losses of every shorter length.
"""

from __future__ import annotations

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import Window


class Prefix(Protocol):
    depends_on_longest = True
    is_prefix = True

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        return [Window(s, s + length, s + 1) for s in range(0, n - longest, longest)]
