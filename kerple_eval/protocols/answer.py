"""answer: the answer at the end of each synthetic document (passkey, needle, copy, ...).

A document of L + 1 tokens whose last K are the answer gives the window ``(0, L, L - K + 1)``: its last K
targets, each with everything before it as context, as if the answer so far had been right. Documents of
other lengths belong to other cells; text without an answer gives no window.

Recorded beside the losses is whether each target was the argmax, the lowest id where several are equal.
A document is an exact match where all K were: then, and only then, greedy decoding would have produced the
answer, since until its first mistake it reads the same inputs.
"""

from __future__ import annotations

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import Window


class AnswerProtocol(Protocol):
    scores_answers = True

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        """Text has no answer."""
        return []

    def plan_answer(self, n: int, answer: int, length: int) -> list[Window]:
        return [Window(0, length, length - answer + 1)] if n == length + 1 else []
