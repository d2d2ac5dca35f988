"""dape[:k=256][,batch=B]: the last min(k, L) targets of each whole window, averaged by batches.

Source: github.com/chuanyang-Zheng/DAPE commit 5667d28 (a GPT-NeoX fork), ``megatron/training.py``:
``forward_step_eval_last`` (``eval_last``, 256 by default), ``train`` and ``evaluate``.

Windows ``(s, s + L, s + L - min(k, L) + 1)`` for s = 0, L, ... <= n - 1 - L, over all documents in order;
each B consecutive windows are a batch (the last batch may be shorter). A batch's loss is the mean over its
targets, the cell's loss the mean over batches, the perplexity its exp. B is 32 at L = 512, 16 at 1024, 8 at
2048, 1 beyond in the source, where every batch is full; then, and with the default B = 1, the mean over
batches is the mean over targets.

The source draws 20 batches from packed validation text, in the way of ``kerple-release:split=valid``;
that draw is not repeated here. Its published code cuts the logits to the last k targets, but the labels
only in curriculum training; here both are cut, as the paper describes.

Known biases: 163,840 targets at L = 512 but 5,120 at 8192, and other text at each length, because a batch
shrinks with L while the number of batches stays; a short last batch counts as much as a full one.
Better: ``aligned`` (the same k and the same targets at every length).
"""

from __future__ import annotations

from collections.abc import Sequence

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import UserError, Window


class Dape(Protocol):
    reduction = "mean over batches of their means, unweighted"

    def __init__(self, *, k: int = 256, batch: int = 1) -> None:
        if k < 1:
            raise UserError(f"dape: k={k} must be at least 1")
        if batch < 1:
            raise UserError(f"dape: batch={batch} must be at least 1")
        self.k, self.batch = k, batch

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        k = min(self.k, length)
        return [Window(s, s + length, s + length - k + 1) for s in range(0, n - length, length)]

    def weights(self, windows: Sequence[Window]) -> list[float] | None:
        """All windows of a cell have the same number of targets, so each has an equal part of its batch."""
        count = len(windows)
        return [1.0 / min(self.batch, count - i // self.batch * self.batch) for i in range(count)]
