"""What a protocol is: a pure integer plan of windows over a document of n tokens.

n counts tokens, so targets are 1..n-1 (target 0 has no context). L is the cell's length and M the
run's longest length, both in tokens. Protocols import no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from kerple_eval.types import Window


class Protocol(ABC):
    """Base of every protocol; options are keyword-only parameters of ``__init__``."""

    #: Whether M changes the windows of a cell, and so belongs to its key.
    depends_on_longest = False

    #: Whether windows of length L are the first L tokens of the windows of length M.
    is_prefix = False

    @abstractmethod
    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        """Windows over a document of ``n`` tokens, in order of start and first target."""

    def check(self, lengths: list[int]) -> None:  # noqa: B027 - most protocols allow every length
        """Refuse lengths the options cannot serve (UserError)."""
