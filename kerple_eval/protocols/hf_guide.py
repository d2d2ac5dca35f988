"""hf-guide:stride=S: perplexity as the guide in transformers' documentation computes it.

Source: huggingface/transformers, ``docs/source/en/perplexity.md`` (commit 052b1dc), "Perplexity of
fixed-length models"; L is its ``max_length``, S its ``stride`` (512 by default).

Window i = 0, 1, ... holds tokens ``[iS, min(iS + L, n))`` of what the tokeniser makes of the text (with a
BOS where it puts one); labels are those after the end of the window before it, all of the first. The
model shifts labels by one inside a window, so a window's own first token is never a target.

The loss is the mean over windows of their mean losses, weighted by **labels - 1**. The guide subtracts one
label a window for the shift; in a window that overlaps the last one no label is lost, so its mean counts
for one target less than it has. The guide has one text; several documents are summed alike (its own
example joins them to one).

Known biases: that count; with S = L the first token of every window is never scored, with S > L longer
stretches are not; contexts begin at 1 in the first window only. Better: ``sliding-window`` of the same
stride.
"""

from __future__ import annotations

from collections.abc import Sequence

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import FirstToken, UserError, Window


class HfGuide(Protocol):
    reduction = "mean over windows of their means, weighted by labels - 1"
    first_token = FirstToken("tokenizer")
    feeds_last_target = True

    def __init__(self, *, stride: int = 512) -> None:
        if stride < 1:
            raise UserError(f"hf-guide: stride={stride} must be at least 1")
        self.stride = stride

    def check(self, lengths: list[int]) -> None:
        if min(lengths) < 2:
            raise UserError("hf-guide: a window of length 1 has no target; use lengths of 2 and more")

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        windows, scored = [], 0
        for start in range(0, n if n > 1 else 0, self.stride):
            end = min(start + length, n)
            first = max(scored, start + 1)
            if first == end:
                raise UserError(
                    "hf-guide: the last window of a document holds one token and no target, where the guide "
                    "ends in NaN; use another length or stride"
                )
            windows.append(Window(start, end - 1, first))
            scored = end
            if end == n:
                break
        return windows

    def weights(self, windows: Sequence[Window]) -> list[float] | None:
        """A window whose own first token is a label loses it to the shift; no other loses one."""
        counts, scored = [], 0
        for window in windows:
            if window.start == 0:
                scored = 0  # another document
            counts.append(float(window.targets - (scored > window.start)))
            scored = window.stop + 1
        return counts
