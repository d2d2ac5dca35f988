"""first:k=K: the first K targets of each whole window, contexts 1..K.

Windows ``(s, s + L, s + 1)`` for s = 0, L, ... <= n - 1 - L, of which targets s+1 .. s+K are scored.
"""

from kerple_eval.protocols.base import Protocol
from kerple_eval.support.registry import Entry
from kerple_eval.types import UserError, Window


class First(Protocol):
    def __init__(self, *, k: int) -> None:
        if k < 1:
            raise UserError(f"first: k={k} must be at least 1")
        self.k = k

    def check(self, lengths: list[int]) -> None:
        if self.k > min(lengths):
            raise UserError(f"first: k={self.k} exceeds the shortest length {min(lengths)}; use a smaller k")

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        return [Window(s, s + self.k, s + 1) for s in range(0, n - length, length)]


ENTRY = Entry("first", "kerple_first:First", "k=K: the first K targets of each whole window, contexts 1..K")
