"""torch's fused CPU attention: its output with the logarithm of each row's sum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FUSED = "_scaled_dot_product_flash_attention_for_cpu"


def attend_with_sums(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, is_causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, Q, e]``, log-sums ``[B, H, Q]`` of q ``[B, H, Q, d]``, k and v ``[B, H, K, d or e]``.

    ``bias`` (broadcast to ``[B, H, Q, K]``) is added to the scores ``q k / sqrt(d)``; ``is_causal``: row r
    sees the first r + 1 keys. Where a bias is -inf for a whole row, its output and sum mean nothing.

    The operation that gives both is private in torch; without it the scores are formed in memory.
    """
    fused = getattr(torch.ops.aten, FUSED, None)
    if fused is not None:
        if bias is not None:
            bias = bias.expand(*q.shape[:2], *bias.shape[-2:])
        size = max(q.shape[-1], v.shape[-1])  # the operation knows one: zeros change neither product
        wide = [F.pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x for x in (q, k, v)]
        out, sums = fused(*wide, 0.0, is_causal, attn_mask=bias, scale=q.shape[-1] ** -0.5)
        return out[..., : v.shape[-1]], sums
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    sums = scores.logsumexp(dim=-1)
    return (scores - sums[..., None]).exp() @ v, sums
