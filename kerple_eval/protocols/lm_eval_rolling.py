"""lm-eval-rolling: the windows of lm-evaluation-harness' ``loglikelihood_rolling``.

Source: lm_eval 0.4.13, ``models/huggingface.py: loglikelihood_rolling``, ``utils.py:
get_rolling_token_windows`` with ``context_len=1``, ``make_disjoint_window``. L is its ``max_length``.

A document is what the tokeniser makes of it, its own BOS included, after one *prefix token*: the
tokeniser's BOS, else its end-of-document token, or ``prefix_token_id=ID`` (lm-eval's argument of that
name; needed where token ids are given). With the prefix token as token 0 and n tokens in all, every
target 1..n-1 is scored once: windows ``(0, min(L, n - 1), 1)``, then ``(e - L, e, e - L + 1)`` for
e = 2L, 3L, ...; the last window ends at n - 1, has L inputs and scores what is left.

lm-eval sums over documents and divides by words or bytes: its ``bits_per_byte`` is the column of that
name, its ``byte_perplexity`` is 2 to that power. It has no perplexity a token; ``nll`` is the mean over
targets. lm-eval scores every document: run with ``--keep-short`` (documents of one token are still left
out, and the record counts them).

Known biases: windows do not overlap, so targets have contexts 1..L and the number falls with L even for a
model that uses very little context; only the last window has full left context; where the tokeniser puts
a BOS, that BOS is scored as a target after the prefix token; ``max_length`` changes the number and is not
part of its name. Better: ``sliding-window``.
"""

from __future__ import annotations

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import FirstToken, UserError, Window


class LmEvalRolling(Protocol):
    def __init__(self, *, prefix_token_id: int | None = None) -> None:
        if prefix_token_id is not None and prefix_token_id < 0:
            raise UserError(f"lm-eval-rolling: prefix_token_id={prefix_token_id} must be at least 0")
        self.first_token = FirstToken("prefix", prefix_token_id)

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        last = n - 1
        if last < 1:
            return []
        windows = [Window(0, min(length, last), 1)]
        while (reached := windows[-1].stop) < last:
            stop = min(reached + length, last)
            windows.append(Window(stop - length, stop, reached + 1))
        return windows
