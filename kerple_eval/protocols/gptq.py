"""gptq: perplexity as the quantisation papers report it. L is their ``seqlen``, 2048.

Source: github.com/IST-DASLab/gptq, ``llama.py: llama_eval`` and ``datautils.py: get_wikitext2``; taken over
by SparseGPT, AWQ, QuIP# and others.

The test split's rows are joined by two line breaks and tokenised as one text, by the tokeniser's own rule for
BOS (once, at the start). Chunks are ``[iL, (i + 1) L)``; what is left at the end is not used, and the first
token of a chunk is not scored: targets ``iL + 1 .. (i + 1) L - 1``, contexts 1..L-1. ``nll`` is the mean over
targets, as every chunk has L - 1. (The code multiplies each chunk's mean by L and divides by all L, which is
the same.)

Joining is the text's rule, not the protocol's: ``--text FILE,join=blank-line`` or
``hf:...,join=blank-line``. Known biases: contexts begin at 1 in every chunk, the first token of
each chunk is lost. Better: ``full-context`` over documents, or ``sliding-window``.
"""

from __future__ import annotations

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import FirstToken, UserError, Window


class Gptq(Protocol):
    feeds_last_target = True
    first_token = FirstToken("tokenizer")

    def check(self, lengths: list[int]) -> None:
        if min(lengths) < 2:
            raise UserError("gptq: a chunk of length 1 has no target; use longer lengths")

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        return [Window(s, s + length - 1, s + 1) for s in range(0, n - length + 1, length)]
