"""yarn:stride=S[,truncate=true]: perplexity as YaRN's ``eval/perplexity.py`` computes it.

Source: github.com/jquesnelle/yarn commit b1d7076, ``compute_perplexity``; S is its ``--sliding-window``
(256 by default), L its ``max_length``. Also used by the works that took the script over.

A window is BOS and L - 1 tokens (L tokens where the tokeniser has no BOS): with T of them, window
i = 0, 1, ... holds tokens ``[iS, min(iS + T, n))`` and scores those after the end of the window before
it; the first scores all, its first token after BOS alone. Documents are tokenised without special tokens.
``truncate=true`` is its ``--truncate``: the first T tokens of a document, one window. ``bos_token_id=ID``
names the marker where token ids are given, which have none otherwise. The script takes documents of at
least ``--dataset-min-tokens`` tokens, or all: ``--keep-short``.

The loss is the **unweighted mean over windows** of each window's mean loss. Known biases: every window
counts the same, the first of a document (T targets), the others (S targets) and the last (what is left);
with S > T some targets are never scored; with ``truncate`` a longer L scores other targets, most of them
with little context, so the curve over L falls for any model. The script runs in bfloat16; here ``--dtype``
decides. Better: ``sliding-window`` of the same stride (with ``--bos window``), or ``aligned`` to measure
what context is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import FirstToken, UserError, Window


class Yarn(Protocol):
    reduction = "mean over windows of their means, unweighted"
    feeds_last_target = True

    def __init__(self, *, stride: int = 256, truncate: bool = False, bos_token_id: int | None = None) -> None:
        if stride < 1:
            raise UserError(f"yarn: stride={stride} must be at least 1")
        if bos_token_id is not None and bos_token_id < 0:
            raise UserError(f"yarn: bos_token_id={bos_token_id} must be at least 0")
        self.stride, self.truncate = stride, truncate
        self.first_token = FirstToken("window", bos_token_id)

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        """Without BOS the first token of a window is not a target."""
        return self._plan(n, length, 1)

    def plan_after_marker(self, n: int, length: int, longest: int) -> list[Window]:
        return self._plan(n, length, 0)

    def weights(self, windows: Sequence[Window]) -> list[float] | None:
        return [1.0] * len(windows)

    def _plan(self, n: int, length: int, lost: int) -> list[Window]:
        if self.truncate:
            n = min(n, length)
        windows, scored = [], 0
        for start in range(0, n, length if self.truncate else self.stride):
            end = min(start + length, n)
            first = max(scored, start + lost)
            if first == end:
                raise UserError(
                    "yarn: the last window of a document holds one token and no target, where the script "
                    "ends in NaN; use another length or stride"
                )
            windows.append(Window(start, end - 1, first, after_marker=first == start))
            scored = end
            if end == n:
                break
        return windows
