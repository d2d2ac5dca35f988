"""Training on CPU: fused attention with a kernel of distance, and gradients to the kernel's table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kerple_eval.models.decoder.fused import attend_with_sums
from kerple_eval.models.decoder.toeplitz import antidiagonals, hankel

BLOCK_ROWS = 64  # query rows a block of weights holds, for the cache
RECOMPUTE_ELEMENTS = 1 << 22  # of a layer's scores: more are not kept for the backward pass but formed anew


def kernel_attention(q: Tensor, k: Tensor, v: Tensor, values: Tensor, reach: int) -> Tensor:
    """Causal attention ``[B, H, L, d]`` with the kernel's table ``values`` (:class:`attention.Table`)."""
    apply: Callable[..., Tensor] = _KernelAttention.apply
    return apply(q, k, v, values, reach)


def _blocks(length: int, values: Tensor, reach: int) -> Iterator[tuple[int, int, slice]]:
    """First query, end and the block's rows where the last query comes first."""
    rows = min(BLOCK_ROWS, values.shape[1] - reach + 1)
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        yield start, stop, slice(length - stop, length - start)


def _attend_and_keep(
    q: Tensor, k: Tensor, v: Tensor, values: Tensor, reach: int
) -> tuple[Tensor, list[Tensor]]:
    """Output, and the weights ``[B H, rows, K]`` of each block."""
    queries = (q * q.shape[-1] ** -0.5).flip(2).flatten(0, 1)
    keys, vals = k.flatten(0, 1), v.flatten(0, 1)
    out, kept = torch.empty_like(queries), []
    for start, stop, block in _blocks(q.shape[2], values, reach):
        scores = torch.bmm(queries[:, block], keys[:, :stop].transpose(1, 2))
        scores.view(*q.shape[:2], -1, stop).add_(hankel(values, reach, start, stop - 1))
        kept.append(scores.softmax(dim=-1))
        out[:, block] = torch.bmm(kept[-1], vals[:, :stop])
    return out.view(q.shape).flip(2), kept


class _KernelAttention(torch.autograd.Function):
    """Fused forward, and a backward that also reaches the kernel's table.

    torch's fused CPU attention gives no gradient to a bias, and its fallback materialises
    [B, H, L, L] several times over. Here the backward pass forms one [B, H, rows, K] block at a time,
    small enough for the cache, and adds the blocks' anti-diagonals into the table's gradient. Where a layer
    has few scores the forward pass forms the blocks and keeps them, which takes less time in all.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor, k: Tensor, v: Tensor, values: Tensor, reach: int,
    ) -> Tensor:  # fmt: skip
        length = q.shape[2]
        assert k.shape[2] == length <= reach, "training attends over whole sequences"
        ctx.reach = reach
        if q.shape[:2].numel() * length**2 <= RECOMPUTE_ELEMENTS:
            with torch.autocast(q.device.type, enabled=False):  # the fused operation has none either
                out, kept = _attend_and_keep(q, k, v, values, reach)
            ctx.save_for_backward(q, k, v, values, out, None, *kept)
            return out
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        chunk = values.shape[1] - reach + 1
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            bias = hankel(values, reach, start, stop - 1)
            rows, sums = attend_with_sums(q[:, :, start:stop].flip(2), k[:, :, :stop], v[:, :, :stop], bias)
            out[:, :, start:stop] = rows.flip(2)
            lse[:, :, start:stop] = sums.flip(2)
        ctx.save_for_backward(q, k, v, values, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, values, out, lse, *kept = ctx.saved_tensors
        reach: int = ctx.reach
        batch, heads, length, dim = q.shape
        scale = dim**-0.5
        # [B H, L, .]; what belongs to a query from the last to the first, as the bias has them. A number that
        # a whole row of a block gets (-lse, -delta) is one more column of its query against a column of ones:
        # a product adds it for nothing, where a sum of its own would pass over the block.
        one = k.new_ones(batch * heads, length, 1)
        keys, vals = k.flatten(0, 1), v.flatten(0, 1)
        vals_1 = torch.cat([vals, one], dim=-1)
        up_1 = torch.cat([grad, -(grad * out).sum(-1, keepdim=True)], dim=-1).flip(2).flatten(0, 1)
        queries_1 = q * scale if kept else torch.cat([q * scale, -lse[..., None]], dim=-1)
        queries_1 = queries_1.flip(2).flatten(0, 1)
        keys_1 = keys if kept else torch.cat([keys, one], dim=-1)
        queries, up = queries_1[..., :dim], up_1[..., :dim]
        dq, dk, dv = torch.empty_like(keys), torch.zeros_like(keys), torch.zeros_like(vals)
        dtable = values.new_zeros(values.shape)
        for number, (start, stop, block) in enumerate(_blocks(length, values, reach)):
            by_batch = (batch, heads, stop - start, stop)
            if kept:
                p = kept[number]
            else:
                p = torch.bmm(queries_1[:, block], keys_1[:, :stop].transpose(1, 2))
                p.view(by_batch).add_(hankel(values, reach, start, stop - 1))
                p.exp_()
            # A product and then a sum: a product added to a part of a tensor is done matrix by matrix.
            dv[:, :stop] += torch.bmm(p.transpose(1, 2), up[:, block])
            ds = torch.bmm(up_1[:, block], vals_1[:, :stop].transpose(1, 2)).mul_(p)
            dq[:, block] = torch.bmm(ds, keys[:, :stop])
            dk[:, :stop] += torch.bmm(ds.transpose(1, 2), queries[:, block])
            offset = reach - stop
            diagonals = antidiagonals(ds.view(by_batch).sum(0))
            dtable[:, offset : offset + diagonals.shape[1]] += diagonals
        dq = dq.view(q.shape).flip(2).mul_(scale)
        return dq, dk.view(k.shape), dv.view(v.shape), dtable, None
