"""A model's predictions against a reference's, target by target.

With p the reference's next-token distribution and q the scored model's, over a vocabulary of V tokens:

    divergence   KL(p || q) = sum_v p_v (ln p_v - ln q_v), nats
    agreement    whether both have the same largest logit (the lowest id where several are)
    entropy      H(q) = - sum_v q_v ln q_v, nats
    rank         of the target by q: 1 + how many tokens have a larger logit, or the same and a lower id

The direction and the agreement are those of llama.cpp's perplexity tool (``--kl-divergence``: "Mean KLD",
"Same top p"; ggml-org/llama.cpp, tools/perplexity/perplexity.cpp, ``log_softmax`` and ``kl_divergence``),
which keeps the reference's log-probabilities in 16 bits and leaves out those below -16. Computed in float64
by slices of a chunk of logits, so that neither model's [targets, V] ever exists at once; kept in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kerple_eval.models.base import head_rows
from kerple_eval.types import Window

#: What is kept of each target, in this order.
ROWS = ("divergence", "agreement", "entropy", "rank")
#: Slices of a chunk of logits: the float64 intermediates of one take less memory than the chunk, and on a CPU
#: about what its cache holds (at V = 50,304, 12 slices take twice the time).
SLICES = 32

#: The reference's windows that together cover the targets of one window, in order, each with how many of its
#: targets count, from ``first_target`` on.
Parts = list[tuple[Window, int]]


class RowReader:
    """Chunks of logits ``[B, r, V]`` of consecutive positions, read a few positions at a time."""

    def __init__(self, chunks: Iterator[Tensor]) -> None:
        self.chunks = chunks
        self.left: Tensor | None = None

    def take(self, most: int) -> Tensor:
        """The next positions, at most so many, of one chunk; the chunk before is let go first."""
        if self.left is None:
            self.left = next(self.chunks)
        taken, rest = self.left[:, :most], self.left[:, most:]
        self.left = rest if rest.shape[1] else None
        return taken


def compare_rows(logits: Tensor, targets: Tensor, reference: RowReader) -> Tensor:
    """What :data:`ROWS` names, of ``logits [B, r, V]`` and the reference's next r: ``[B, 4, r]`` float32."""
    batch, rows, vocabulary = logits.shape
    most = max(1, head_rows(logits.device, batch, vocabulary) // SLICES)
    found = torch.empty(batch, len(ROWS), rows, dtype=torch.float32, device=logits.device)
    done = 0
    while done < rows:
        other = reference.take(min(most, rows - done))
        part = slice(done, done + other.shape[1])
        found[..., part] = compare_logits(logits[:, part], other, targets[:, part])
        done = part.stop
    return found


def compare_logits(logits: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
    """What :data:`ROWS` names: ``[B, r, V]`` twice and ``[B, r]`` -> ``[B, 4, r]`` float64."""
    ln_q = logits.double().log_softmax(-1)
    ln_p = reference.to(logits.device).double().log_softmax(-1)
    p, q = ln_p.exp(), ln_q.exp()
    entropy = -torch.where(q > 0, q * ln_q, 0).sum(-1)  # 0 ln 0 = 0
    divergence = torch.where(p > 0, p * (ln_p - ln_q), 0).sum(-1)  # infinite where q is 0 and p not
    agreement = argmax(logits) == argmax(reference.to(logits.device))
    return torch.stack(
        [divergence, agreement.double(), entropy, target_rank(logits, targets).double()], dim=1
    )


def argmax(logits: Tensor) -> Tensor:
    """The id of the largest logit, the lowest where several are (numpy's argmax, on any device):
    ``[B, r, V]`` -> int64 ``[B, r]``.
    """
    largest = logits == logits.amax(dim=-1, keepdim=True)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(largest, ids, logits.shape[-1]).amin(dim=-1)


def target_rank(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the target is the argmax: ``[B, r, V]``, ``[B, r]`` -> int64 ``[B, r]``."""
    own = logits.gather(-1, targets[..., None])
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return 1 + ((logits > own) | ((logits == own) & (ids < targets[..., None]))).sum(-1)
