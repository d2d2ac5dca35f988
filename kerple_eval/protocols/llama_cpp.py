"""llama-cpp: perplexity as llama.cpp's ``llama-perplexity`` computes it. L is its ``n_ctx`` (``-c``, 512).

Source: github.com/ggml-org/llama.cpp, ``tools/perplexity/perplexity.cpp``, ``perplexity()`` without
``--ppl-stride`` (as llama-cpp-python 0.3.36 carries it).

The text's tokens, BOS before them where the tokeniser adds one, are cut into chunks of n_ctx; what is left at
the end is not used. In each chunk the first token is replaced by that BOS, and the second half is scored: its
tokens ``n_ctx / 2 + 1 .. n_ctx - 1``, with as many tokens of context. ``nll`` is the mean over targets. The
tool refuses a text of fewer than two chunks; here it is left out.

The tool takes one text, such as ``wiki.test.raw``: give it as one file, or join rows by a rule of the text
(``--text FILE,join=nothing``). Known biases: half of the text is
never scored, and contexts vary by a factor of two. Better: ``sliding-window:stride=S`` with S = L / 2, which
scores every target with the same contexts.
"""

from __future__ import annotations

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import FirstToken, UserError, Window


class LlamaCpp(Protocol):
    feeds_last_target = True
    first_token = FirstToken("window", where_added=True)

    def check(self, lengths: list[int]) -> None:
        if min(lengths) < 3:
            raise UserError(f"llama-cpp: a chunk of length {min(lengths)} has no target; use longer lengths")

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        first, chunks = length // 2, n // length
        if chunks < 2:
            return []
        starts = range(0, chunks * length, length)
        return [Window(s, s + length - 1, s + first + 1) for s in starts]

    def plan_after_marker(self, n: int, length: int, longest: int) -> list[Window]:
        """Positions of the text are one less than the tool's, whose first token is BOS."""
        whole = length + 1
        first, chunks = whole // 2, (n + 1) // whole
        if chunks < 2:
            return []
        starts = range(0, chunks * whole, whole)
        return [Window(s, s + whole - 2, s + first) for s in starts]
