"""Training on CPU: fused attention with a kernel of distance, and gradients to the kernel's table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kerple_eval.models.decoder.toeplitz import antidiagonals, hankel

FUSED = "_scaled_dot_product_flash_attention_for_cpu"
BACKWARD_ROWS = 64  # query rows a block of the backward pass holds, for the cache


def kernel_attention(q: Tensor, k: Tensor, v: Tensor, values: Tensor, reach: int) -> Tensor:
    """Causal attention ``[B, H, L, d]`` with the kernel's table ``values`` (:class:`attention.Table`)."""
    apply: Callable[..., Tensor] = _KernelAttention.apply
    return apply(q, k, v, values, reach)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, Q, d]`` and the logarithm of each row's sum ``[B, H, Q]``; bias ``[1, H, Q, K]``.

    torch's fused operation that gives both is private; without it the scores are formed in memory.
    """
    fused = getattr(torch.ops.aten, FUSED, None)
    if fused is None:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
        sums = scores.logsumexp(dim=-1)
        return (scores - sums[..., None]).exp() @ v, sums
    bias = bias.expand(q.shape[0], -1, -1, -1)
    output: tuple[Tensor, Tensor] = fused(q, k, v, 0.0, False, attn_mask=bias)
    return output


class _KernelAttention(torch.autograd.Function):
    """Fused forward, and a backward that also reaches the kernel's table.

    torch's fused CPU attention gives no gradient to a bias, and its fallback materialises
    [B, H, L, L] several times over. Here the backward pass forms one [B, H, rows, K] block at a time,
    small enough for the cache, and adds the blocks' anti-diagonals into the table's gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor, k: Tensor, v: Tensor, values: Tensor, reach: int,
    ) -> Tensor:  # fmt: skip
        length = q.shape[2]
        assert k.shape[2] == length <= reach, "training attends over whole sequences"
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        chunk = values.shape[1] - reach + 1
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            bias = hankel(values, reach, start, stop - 1)
            rows, sums = _attend(q[:, :, start:stop].flip(2), k[:, :, :stop], v[:, :, :stop], bias)
            out[:, :, start:stop] = rows.flip(2)
            lse[:, :, start:stop] = sums.flip(2)
        ctx.save_for_backward(q, k, v, values, out, lse)
        ctx.reach = reach
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, values, out, lse = ctx.saved_tensors
        reach: int = ctx.reach
        batch, heads, length, dim = q.shape
        scale = dim**-0.5
        rows = min(BACKWARD_ROWS, values.shape[1] - reach + 1)
        # [B H, L, .]; what belongs to a query from the last to the first, as the bias has them. A number that
        # a whole row of a block gets (-lse, -delta) is one more column of its query against a column of ones:
        # a product adds it for nothing, where a sum of its own would pass over the block.
        one = k.new_ones(batch * heads, length, 1)
        keys, vals = k.flatten(0, 1), v.flatten(0, 1)
        keys_1, vals_1 = torch.cat([keys, one], dim=-1), torch.cat([vals, one], dim=-1)
        minus_delta = -(grad * out).sum(-1, keepdim=True)
        queries_1 = torch.cat([q * scale, -lse[..., None]], dim=-1).flip(2).flatten(0, 1)
        up_1 = torch.cat([grad, minus_delta], dim=-1).flip(2).flatten(0, 1)
        queries, up = queries_1[..., :dim], up_1[..., :dim]
        dq, dk, dv = torch.empty_like(keys), torch.zeros_like(keys), torch.zeros_like(vals)
        dtable = values.new_zeros(values.shape)
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            block = slice(length - stop, length - start)
            by_batch = (batch, heads, stop - start, stop)
            p = torch.bmm(queries_1[:, block], keys_1[:, :stop].transpose(1, 2))
            p.view(by_batch).add_(hankel(values, reach, start, stop - 1))
            p.exp_()
            dv[:, :stop].baddbmm_(p.transpose(1, 2), up[:, block])
            ds = torch.bmm(up_1[:, block], vals_1[:, :stop].transpose(1, 2)).mul_(p)
            dq[:, block] = torch.bmm(ds, keys[:, :stop])
            dk[:, :stop].baddbmm_(ds.transpose(1, 2), queries[:, block])
            offset = reach - stop
            diagonals = antidiagonals(ds.view(by_batch).sum(0))
            dtable[:, offset : offset + diagonals.shape[1]] += diagonals
        dq = dq.view(q.shape).flip(2).mul_(scale)
        return dq, dk.view(k.shape), dv.view(v.shape), dtable, None
