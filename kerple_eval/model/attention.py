"""Causal attention with a positional scheme, without an [L, L] tensor.

Shapes: q ``[B, H, Q, d]``, k and v ``[B, H, K, d]``; the queries are the last Q of the K positions,
so query row r stands at position ``K - Q + r``. Scores are ``q k / sqrt(d)``; the scheme's weight
multiplies them and its kernel or bias is added after that scaling.

A kernel of distance enters as one vector a head, ``table[h, t] = kernel(reach - 1 - t)`` with
-inf where the distance is negative. With a chunk's query rows reversed, row r and key j are at
distance ``last - r - j``, which makes the bias a Hankel matrix: a strided *view* of the table with
strides (1, 1), no copy, O(H L) memory. CPU attention takes the view as it is; CUDA's
memory-efficient attention wants aligned rows, so there the chunk's strip [H, rows, K] is copied out,
and a half-precision model attends in float32 there, since that attention would round the bias to
the model's dtype.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.schemes.base import Scheme

QUERY_CHUNK = 1024
BACKWARD_ROWS = 128  # query rows a block of the training backward pass holds, for the cache
GENERAL_CHUNK_ELEMENTS = 1 << 24  # scores a chunk of the general path may hold (64 MB in float32)


class Table:
    """The scheme's kernel at every distance below ``reach``, shared by all layers of a pass."""

    def __init__(self, scheme: Scheme, reach: int, dtype: torch.dtype, device: torch.device):
        self.reach = reach
        self.chunk = min(QUERY_CHUNK, reach)
        distance = torch.arange(reach - 1, -1, -1, device=device)
        kernel = scheme.kernel(distance.to(torch.promote_types(dtype, torch.float32)))
        assert kernel is not None
        future = kernel.new_full((kernel.shape[0], self.chunk - 1), -math.inf)
        self.values = torch.cat([kernel, future], dim=1).contiguous()  # [H, reach + chunk - 1]

    def view(self, first: int, last: int) -> Tensor:
        """Bias ``[1, H, last - first + 1, last + 1]`` of query positions last, last-1, ..., first."""
        return _hankel(self.values, self.reach, first, last)


def _hankel(values: Tensor, reach: int, first: int, last: int) -> Tensor:
    heads, width = values.shape
    return values.as_strided(
        (1, heads, last - first + 1, last + 1),
        (0, width, 1, 1),
        values.storage_offset() + reach - 1 - last,
    )


def uses_general_path(scheme: Scheme) -> bool:
    """Whether the scheme needs score chunks in memory (weights, absolute biases, content)."""
    return any(scheme.implements(hook) for hook in ("weight", "bias", "score"))


def make_table(scheme: Scheme, reach: int, dtype: torch.dtype, device: torch.device) -> Table | None:
    if uses_general_path(scheme) or not scheme.implements("kernel"):
        return None
    return Table(scheme, reach, dtype, device)


def attention(q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, table: Table | None) -> Tensor:
    """Attention output ``[B, H, Q, d]`` in q's dtype; ``table`` from :func:`make_table`."""
    if uses_general_path(scheme):
        return _general(q, k, v, scheme)
    if table is None:
        return _plain(q, k, v)
    dtype = q.dtype
    training = torch.is_grad_enabled() and q.device.type == "cpu"
    if training or q.device.type != "cpu":
        q, k, v = (x.to(table.values.dtype) for x in (q, k, v))
    if training:
        out: Tensor = _KernelAttention.apply(  # type: ignore[no-untyped-call]
            q, k, v, table.values, table.reach
        )
    else:
        out = _kernel(q, k, v, table)
    return out.to(dtype)


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    if queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    rows = torch.arange(keys - queries, keys, device=q.device)
    out = []
    for start in range(0, queries, QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, queries)
        seen = keys - queries + stop
        mask = torch.arange(seen, device=q.device) <= rows[start:stop, None]
        out.append(
            F.scaled_dot_product_attention(
                q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], attn_mask=mask
            )
        )
    return torch.cat(out, dim=2)


def _kernel(q: Tensor, k: Tensor, v: Tensor, table: Table) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    offset = keys - queries
    outs = []
    for start in range(0, queries, table.chunk):
        stop = min(start + table.chunk, queries)
        seen = offset + stop
        bias = table.view(offset + start, seen - 1)
        if q.device.type != "cpu":
            bias = _aligned(bias)
        rows = F.scaled_dot_product_attention(
            q[:, :, start:stop].flip(2),
            k[:, :, :seen],
            v[:, :, :seen],
            attn_mask=bias.expand(q.shape[0], -1, -1, -1),
        )
        outs.append(rows.flip(2))
    return torch.cat(outs, dim=2)


def _aligned(bias: Tensor) -> Tensor:
    """A copy whose rows start at multiples of 8 elements, as CUDA's fused attention asks."""
    padded = F.pad(bias, (0, -bias.shape[-1] % 8))
    return padded[..., : bias.shape[-1]]


def _general(q: Tensor, k: Tensor, v: Tensor, scheme: Scheme) -> Tensor:
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    rows = max(1, min(queries, GENERAL_CHUNK_ELEMENTS // (batch * heads * keys)))
    out = [
        _score_block(q[:, :, start : start + rows], k, v, scheme, keys - queries + start)
        for start in range(0, queries, rows)
    ]
    return torch.cat(out, dim=2)


def _score_block(q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, first: int) -> Tensor:
    seen = first + q.shape[2]
    k, v = k[:, :, :seen], v[:, :, :seen]
    dtype = torch.promote_types(q.dtype, torch.float32)
    positions_q = torch.arange(first, seen, device=q.device)
    positions_k = torch.arange(seen, device=q.device)
    distance = positions_q[:, None] - positions_k
    causal = distance >= 0
    index = distance.clamp(min=0)
    every = torch.arange(seen, device=q.device, dtype=dtype)
    scores = (q @ k.transpose(-1, -2)).to(dtype) * q.shape[-1] ** -0.5
    weight = scheme.weight(every)
    if weight is not None:
        scores = scores * weight[:, index]
    kernel = scheme.kernel(every)
    if kernel is not None:
        scores = scores + kernel[:, index]
    bias = scheme.bias(positions_q, positions_k)
    if bias is not None:
        scores = scores + bias.to(dtype)
    if scheme.implements("score"):
        scores = scheme.score(scores, q, k, positions_q, positions_k)
    scores = scores.masked_fill(~causal, -math.inf)
    out: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    return out


def eager_attention(q: Tensor, k: Tensor, v: Tensor, scheme: Scheme) -> Tensor:
    """The whole score matrix at once, as the KERPLE release does: the oracle, O(H L^2) memory."""
    return _score_block(q, k, v, scheme, k.shape[2] - q.shape[2])


class _KernelAttention(torch.autograd.Function):
    """Training on CPU: fused forward, and a backward that also reaches the kernel's table.

    torch's fused CPU attention gives no gradient to a bias, and its fallback materialises
    [B, H, L, L] several times over. Here the backward pass forms one [H, rows, K] block at a time,
    small enough for the cache, and adds the blocks' anti-diagonals into the table's gradient.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes tensors by position
        ctx: torch.autograd.function.FunctionCtx,
        q: Tensor, k: Tensor, v: Tensor, values: Tensor, reach: int,
    ) -> Tensor:  # fmt: skip
        length = q.shape[2]
        assert k.shape[2] == length <= reach, "training attends over whole sequences"
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        chunk = values.shape[1] - reach + 1
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            bias = _hankel(values, reach, start, stop - 1)
            rows, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, start:stop].flip(2), k[:, :, :stop], v[:, :, :stop], 0.0, False,
                attn_mask=bias.expand(q.shape[0], -1, -1, -1),
            )  # fmt: skip
            out[:, :, start:stop] = rows.flip(2)
            lse[:, :, start:stop] = sums.flip(2)
        ctx.save_for_backward(q, k, v, values, out, lse)
        ctx.reach = reach  # type: ignore[attr-defined]
        return out

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, values, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]
        reach: int = ctx.reach  # type: ignore[attr-defined]
        batch, heads, length, dim = q.shape
        scale = dim**-0.5
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        rows = min(BACKWARD_ROWS, values.shape[1] - reach + 1)
        dtable = values.new_zeros(values.shape)
        minus_delta = -(grad * out).sum(-1, keepdim=True)
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            bias = _hankel(values, reach, start, stop - 1)[0]
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
            dtable[:, offset : offset + (stop - start) + stop - 1] += _antidiagonals(dbias)
        return dq, dk, dv, dtable, None


def _antidiagonals(block: Tensor) -> Tensor:
    """Sums over r + j = t: ``[H, R, J]`` -> ``[H, R + J - 1]``, by shearing the rows."""
    heads, rows, columns = block.shape
    width = rows + columns
    sheared = F.pad(block, (0, rows)).reshape(heads, rows * width)
    sheared = sheared[:, : rows * (width - 1)].reshape(heads, rows, width - 1)
    # Row r, column j lands at flat index r*width + j = r*(width-1) + (r+j).
    return sheared.sum(dim=1)
