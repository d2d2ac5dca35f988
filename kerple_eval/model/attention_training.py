"""Training on CPU: fused attention with a kernel of distance, and gradients to the kernel's table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kerple_eval.model.toeplitz import antidiagonals, hankel

BACKWARD_ROWS = 64  # query rows a block of the backward pass holds, for the cache


class KernelAttention(torch.autograd.Function):
    """Fused forward, and a backward that also reaches the kernel's table.

    torch's fused CPU attention gives no gradient to a bias, and its fallback materialises
    [B, H, L, L] several times over. Here the backward pass forms one [H, rows, K] block at a time,
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
            rows, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, start:stop].flip(2), k[:, :, :stop], v[:, :, :stop], 0.0, False,
                attn_mask=bias.expand(q.shape[0], -1, -1, -1),
            )  # fmt: skip
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
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        rows = min(BACKWARD_ROWS, values.shape[1] - reach + 1)
        dtable = values.new_zeros(values.shape)
        minus_delta = -(grad * out).sum(-1, keepdim=True)
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            bias = hankel(values, reach, start, stop - 1)[0]
            dbias = values.new_zeros(heads, stop - start, stop)
            for b in range(batch):
                queries = (q[b, :, start:stop] * scale).flip(1)
                keys, vals = k[b, :, :stop], v[b, :, :stop]
                up = grad[b, :, start:stop].flip(1)
                p = torch.baddbmm(bias, queries, keys.transpose(1, 2))
                p = p.sub_(lse[b, :, start:stop, None].flip(1)).exp_()
                dv[b, :, :stop].baddbmm_(p.transpose(1, 2), up)
                delta = minus_delta[b, :, start:stop].flip(1).expand(-1, -1, stop)
                ds = torch.baddbmm(delta, up, vals.transpose(1, 2)).mul_(p)
                dbias.add_(ds)
                dq[b, :, start:stop] = torch.bmm(ds, keys).mul_(scale).flip(1)
                dk[b, :, :stop].baddbmm_(ds.transpose(1, 2), queries)
            offset = reach - stop
            dtable[:, offset : offset + (stop - start) + stop - 1] += antidiagonals(dbias)
        return dq, dk, dv, dtable, None
