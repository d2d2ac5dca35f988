"""Attention without the keys whose weight is lost in rounding (:mod:`pruning`), by blocks of FlexAttention.

The blocks of keys that a block of queries sees are chosen head by head and layer by layer, from norms, on the
device; then every row is certified, and the blocks of queries with one that is not are computed again with
all their keys. A layer waits for the device once, to learn whether there are such.

Norms are passes over memory and some 25 small programs: by arithmetic 0.3 ms for 16,384 tokens of 12 heads
of 64 on an H100 (46 bytes an element at 3.35 TB/s, 5 us a launch), or 18 ns a token. A score with a table
takes 17 instructions, so a token of a window of L takes L x 3.4e-12 s, and a share left out pays from
5,300 / L on (:data:`PAYS`): a third at 16,384, a twenty-fifth at 131,072. No card has measured it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.models.decoder.pruning import Certificate, KernelBounds, PrunedShare

PAYS = 5300.0  # tokens: over the length, the share from which on leaving out takes less than its norms

#: (first block of keys ``[H, R]`` that takes part, which blocks of queries are asked for ``[H, R]`` or all)
#: -> the output ``[B, H, Q, d]``, of any value in the other blocks.
Attend = Callable[[Tensor, Tensor | None], Tensor]


def pruned_by_blocks(
    q: Tensor, k: Tensor, v: Tensor, bounds: KernelBounds, attend: Attend, *, starts: Tensor, before: int,
    block: int,
) -> tuple[Tensor, PrunedShare]:  # fmt: skip
    """Output ``[B, H, Q, d]`` of scaled and rotated vectors; the queries are the last of the keys.

    Blocks of ``block`` queries begin at positions ``starts [R]``, the first of them ``before`` queries ahead
    of the first real one.
    """
    certificate = Certificate(q, k, v, bounds)
    rows, positions = q.shape[2], certificate.positions
    around = before, len(starts) * block - before - rows
    of_row = ((before + torch.arange(rows, device=q.device)) // block).expand(q.shape[1], -1)  # [H, Q]

    def by_block(x: Tensor, value: float) -> Tensor:
        """``[H, Q]`` -> ``[H, R, block]``."""
        return F.pad(x, around, value=value).reshape(len(x), len(starts), block)

    excess = by_block(certificate.excess.amax(dim=0), -torch.inf).amax(dim=-1)
    first = (starts + 1 - bounds.cut(excess)).clamp(min=0) // block
    out = attend(first, None)
    lowest = first.gather(1, of_row) * block
    errors = certificate.errors(out, lowest)
    failing = by_block(errors > bounds.rounding, False).any(dim=-1)
    again = failing.gather(1, of_row)
    facts = [failing.sum(), (positions + 1 - lowest).sum(), errors.masked_fill(again, 0.0).max()]
    some, scores, bound = torch.stack([fact.double() for fact in facts]).tolist()
    if some:
        whole = attend(torch.zeros_like(first), failing)
        out = torch.where(again[..., None], whole, out)
        scores += int(((positions + 1) * again).sum())
    causal = q.shape[1] * int(positions.sum() + rows)
    return out, PrunedShare(int(scores), causal, bound)
