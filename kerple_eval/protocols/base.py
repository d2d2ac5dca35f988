"""What a protocol is: a pure integer plan of windows over a document of n tokens.

n counts tokens, so targets are 1..n-1 (target 0 has no context). L is the cell's length and M the
run's longest length, both in tokens. Protocols import no torch; numpy only where a tool's own random
draw is to be repeated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kerple_eval.types import FirstToken, Sample, Window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Protocol(ABC):
    """Base of every protocol; options are keyword-only parameters of ``__init__``."""

    #: Whether M changes the windows of a cell, and so belongs to its key.
    depends_on_longest = False

    #: Whether windows of length L are the first L tokens of the windows of length M.
    is_prefix = False

    #: Whether the protocol makes its own documents out of all documents of a text (``samples``).
    draws_samples = False

    #: The protocol's own first-token rule; None: the run's rule holds.
    first_token: FirstToken | None = None

    #: How losses become the cell's ``nll``, in words; recorded where ``weights`` says otherwise.
    reduction = "mean over targets"

    #: Whether the tool feeds the last target of a window too, which only shows in the losses of a
    #: model whose positions depend on how many tokens there are.
    feeds_last_target = False

    #: Whether the protocol scores the answers of synthetic documents (``plan_answer``), and no other text.
    scores_answers = False

    @abstractmethod
    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        """Windows over a document of ``n`` tokens, in order of start and first target."""

    def plan_after_marker(self, n: int, length: int, longest: int) -> list[Window]:
        """``plan`` where a first-token marker stands before the inputs of every window.

        ``length`` and ``longest`` do not count the marker. Target ``start`` of a window, which then has the
        marker as context, is not scored unless the protocol says so.
        """
        return self.plan(n, length, longest)

    def plan_answer(self, n: int, answer: int, length: int) -> list[Window]:
        """Where ``scores_answers``: windows over a document whose last ``answer`` of ``n`` are the answer."""
        raise NotImplementedError

    def weights(self, windows: Sequence[Window]) -> list[float] | None:
        """Weight of each window's mean loss in the cell's ``nll``; None: its number of targets.

        ``windows`` are all windows of a cell, in plan order. The loss of the cell is
        ``sum(weight * mean loss of the window) / sum(weights)``.
        """
        return None

    def check(self, lengths: list[int]) -> None:  # noqa: B027 - most protocols allow every length
        """Refuse lengths the options cannot serve (UserError)."""

    def samples(self, sizes: Sequence[int] | NDArray[np.int64], length: int) -> list[Sample]:
        """Where ``draws_samples``: what takes the place of the text's documents at length L.

        ``sizes`` are the tokens of every document of the text, short ones too, the end-of-document token
        of each included. Samples have different names and a fixed order; ``plan`` then runs over each.
        """
        raise NotImplementedError
