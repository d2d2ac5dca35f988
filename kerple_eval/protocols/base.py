"""What a protocol is: a pure integer plan of windows over a document of n tokens.

n counts tokens, so targets are 1..n-1 (target 0 has no context). L is the cell's length and M the
run's longest length, both in tokens. Protocols import no torch; numpy only where a tool's own random
draw is to be repeated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kerple_eval.types import Sample, Window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Protocol(ABC):
    """Base of every protocol; options are keyword-only parameters of ``__init__``."""

    #: Whether M changes the windows of a cell, and so belongs to its key.
    depends_on_longest = False

    #: Whether windows of length L are the first L tokens of the windows of length M.
    is_prefix = False

    #: Whether the protocol cuts documents of its own from all of a text's (``samples``).
    draws_samples = False

    @abstractmethod
    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        """Windows over a document of ``n`` tokens, in order of start and first target."""

    def check(self, lengths: list[int]) -> None:  # noqa: B027 - most protocols allow every length
        """Refuse lengths the options cannot serve (UserError)."""

    def samples(self, sizes: Sequence[int] | NDArray[np.int64], length: int) -> list[Sample]:
        """Where ``draws_samples``: what takes the place of the text's documents at length L.

        ``sizes`` are the tokens of every document of the text, the short ones too, each with its
        end-of-document token. Samples are named apart and in order; ``plan`` then runs over each.
        """
        raise NotImplementedError
