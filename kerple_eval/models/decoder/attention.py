"""Causal attention with a positional scheme, without an [L, L] tensor.

Shapes: q ``[B, H, Q, d]``, k and v ``[B, H, K, d]``; the queries are the last Q of the K positions,
so query row r has position ``K - Q + r``. Scores are ``q k / sqrt(d)`` of the rotated vectors;
the scheme's row scale and weight multiply them and its kernel or bias is added after that.

A kernel of distance enters as one vector per head, ``table[h, t] = kernel(reach - 1 - t)`` with
-inf where the distance is negative. With a chunk's query rows reversed, row r and key j are at
distance ``last - r - j``, which makes the bias a Hankel matrix: a strided *view* of the table with
strides (1, 1), no copy, O(H L) memory. CPU attention takes the view as it is; CUDA's
memory-efficient attention wants aligned rows, so there the chunk's strip [H, rows, K] is copied out,
and a half-precision model attends in float32 there, since that attention would round the bias to
the model's dtype. A window is part of the table (-inf from there on), and a chunk's keys begin where
its first query's window does, so that the work is O(L window).

Schemes of weights, absolute positions or content take the general path, one chunk of scores at a time; those
that move positions or hide keys and do no more go by runs of keys on the CPU (:mod:`key_runs`). In
training such a chunk would leave up to 15 tensors of its size for the backward pass; where a layer has many
scores, the backward pass forms them anew instead and a chunk leaves nothing but its queries and keys.

Those are the backends ``sdpa`` and ``chunks``; ``pruned`` is sdpa without the keys whose weight is lost in
rounding (:mod:`kerple_eval.models.decoder.pruning`), :mod:`kerple_eval.models.decoder.flex` is a third and
``eager`` the oracle. :func:`make_table` is told which, and :mod:`kerple_eval.models.decoder.backends`
decides it for a checkpoint and device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kerple_eval.models.decoder.attention_backward import RECOMPUTE_ELEMENTS, kernel_attention
from kerple_eval.models.decoder.flex import FlexScores
from kerple_eval.models.decoder.key_runs import KeyRuns, keys_in_reach, seen
from kerple_eval.models.decoder.pruning import Bounds, GateBounds, KernelBounds, PrunedShare, pruned_attention
from kerple_eval.models.decoder.toeplitz import hankel
from kerple_eval.schemes.base import Scheme

QUERY_CHUNK = 1024  # query rows that attend at once, at most
SHORT_CHUNK = 256  # and at least, on the CPU: a sixteenth of the window, so that little lies in the future
GENERAL_CHUNK_ELEMENTS = 1 << 24  # scores a chunk of the general path may hold (64 MB in float32)


def rows_at_once(reach: int, device: torch.device) -> int:
    """Query rows of a chunk in a pass over at most ``reach`` tokens."""
    most = min(QUERY_CHUNK, reach)
    return min(most, max(SHORT_CHUNK, reach // 16)) if device.type == "cpu" else most


class KernelTable:
    """The scheme's kernel at every distance below ``reach``, shared by all layers of a pass."""

    def __init__(
        self, scheme: Scheme, reach: int, dtype: torch.dtype, device: torch.device, *, prune: bool = False
    ) -> None:
        self.reach = reach
        self.chunk = rows_at_once(reach, device)
        self.window = scheme.window or reach
        distance = torch.arange(reach - 1, -1, -1, device=device)
        wide = torch.promote_types(dtype, torch.float32)
        kernel = scheme.kernel(distance.to(wide))
        if kernel is None:
            kernel = torch.zeros(scheme.geometry.heads, reach, dtype=wide, device=device)
        if self.window < reach:
            kernel = kernel.masked_fill(distance >= self.window, -math.inf)
        most = min(QUERY_CHUNK, reach) if prune else self.chunk
        future = kernel.new_full((kernel.shape[0], most - 1), -math.inf)
        self.values = torch.cat([kernel, future], dim=1).contiguous()  # [H, >= reach + chunk - 1]
        bounds = KernelBounds(self.values, reach) if prune else None
        self.bounds = bounds if bounds is not None and bounds.worthwhile() else None
        self.pruned = PrunedShare()

    def view(self, first: int, last: int) -> tuple[Tensor, int]:
        """Bias ``[1, H, last - first + 1, last + 1 - lowest]`` of query positions last, last-1, ...,
        first and the keys from ``lowest``, the first that one of them sees; and ``lowest``."""
        lowest = max(0, first + 1 - self.window)
        return hankel(self.values, self.reach, first, last, lowest), lowest


def uses_general_path(scheme: Scheme) -> bool:
    """Whether the scheme needs score chunks in memory (weights, absolute biases, content, softmax)."""
    hooks = ("weight", "bias", "score", "sink", "visible", "remap", "attend")
    changed = scheme.softcap is not None or scheme.augments
    return changed or any(scheme.implements(hook) for hook in hooks)


def prunes_by_gates(scheme: Scheme) -> bool:
    """Whether position enters through ``decay`` (and rotations) alone."""
    hooks = ("weight", "kernel", "bias", "sink", "visible", "remap", "attend")
    changed = scheme.softcap is not None or scheme.augments or scheme.window is not None
    return scheme.implements("decay") and not (changed or any(map(scheme.implements, hooks)))


class GatedScores:
    """Instead of a table: what the layers with one scheme of gates left out."""

    def __init__(self) -> None:
        self.pruned = PrunedShare()


class EagerScores:
    """Instead of a table: compute all scores at once (:func:`eager_attention`)."""


SharedScores = KernelTable | FlexScores | EagerScores | GatedScores | KeyRuns


def make_table(
    scheme: Scheme, reach: int, dtype: torch.dtype, device: torch.device, backend: str = "sdpa"
) -> SharedScores | None:
    """What all layers with one scheme share in a forward pass over at most ``reach`` tokens.

    ``backend`` is sdpa, pruned, chunks, flex or eager. The scheme alone decides between sdpa and chunks, so
    these two give the same: a kernel table, or None where the scheme needs none.
    """
    if backend == "eager":
        return EagerScores()
    if backend == "flex" or (backend == "pruned" and device.type == "cuda"):
        return FlexScores(scheme, reach, dtype, device, prune=backend == "pruned")
    if backend == "pruned" and prunes_by_gates(scheme):
        return GatedScores()
    if uses_general_path(scheme):
        return KeyRuns(rows_at_once(reach, device)) if KeyRuns.serves(scheme, device) else None
    if not (scheme.implements("kernel") or scheme.window):
        return None
    return KernelTable(scheme, reach, dtype, device, prune=backend == "pruned")


def attention(
    q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, table: SharedScores | None, observed: Any = None
) -> Tensor:
    """Attention output ``[B, H, Q, d]`` in q's dtype, of vectors not yet rotated.

    ``table`` from :func:`make_table`; ``observed`` what ``Scheme.observe`` computed from the hidden states.
    """
    if isinstance(table, EagerScores):
        return eager_attention(q, k, v, scheme, observed)
    if isinstance(table, FlexScores):
        return table(*_rotated(q, k, scheme), v)
    if isinstance(table, GatedScores | KeyRuns) or uses_general_path(scheme):
        return _of_content(q, k, v, scheme, table, observed)
    q, k = _rotated(q, k, scheme)
    if table is None:
        return _plain(q, k, v)
    dtype = q.dtype
    training = torch.is_grad_enabled() and q.device.type == "cpu"
    if table.bounds is not None and not training:
        return _pruned(q, k, v, table.bounds, table.pruned)
    if training or q.device.type != "cpu":
        q, k, v = (x.to(table.values.dtype) for x in (q, k, v))
    out = kernel_attention(q, k, v, table.values, table.reach) if training else _kernel(q, k, v, table)
    return out.to(dtype)


def _of_content(
    q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, table: SharedScores | None, observed: Any
) -> Tensor:  # fmt: skip
    out = None
    if isinstance(table, KeyRuns) and not torch.is_grad_enabled():
        out = table.attend(lambda move: _moved(q, k, scheme, move), v, scheme, q.shape[2])
    elif isinstance(table, GatedScores) and not torch.is_grad_enabled():
        decay = scheme.decay(observed)
        assert decay is not None
        out = _pruned(*_rotated(q, k, scheme), v, GateBounds(decay, q.dtype), table.pruned)
    return _general(q, k, v, scheme, observed) if out is None else out


def _pruned(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, share: PrunedShare) -> Tensor:
    out, left_out = pruned_attention(q, k, v, bounds)
    share.add(left_out)
    return out.to(q.dtype)


def _rotated(q: Tensor, k: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Queries scaled and both rotated by their positions."""
    rows = torch.arange(k.shape[2], device=q.device)
    positions = scheme.augmented(rows)
    first = k.shape[2] - q.shape[2]
    q = _scaled(q, scheme, positions[first:], rows[first:])
    return scheme.rotate(q, k, positions[first:], positions)


def _moved(q: Tensor, k: Tensor, scheme: Scheme, move: int) -> tuple[Tensor, Tensor]:
    """:func:`_rotated`, by the positions that a pair of move ``move`` takes; 0: its own."""
    if not move:
        return _rotated(q, k, scheme)
    positions = torch.arange(k.shape[2], device=q.device)
    rows = positions[k.shape[2] - q.shape[2] :]
    moved_q = scheme.remap(rows, positions[:1])[move - 1][1]
    moved_k = scheme.remap(rows[:1], positions)[move - 1][2]
    return scheme.rotate(_scaled(q, scheme, rows, rows), k, moved_q, moved_k)


def _scaled(q: Tensor, scheme: Scheme, positions: Tensor, rows: Tensor) -> Tensor:
    """``rows`` number the queries in their text; ``positions`` are the same but where training moves them."""
    if not scheme.implements("row_scale"):
        return q
    scale = scheme.row_scale(positions, scheme.count_keys(rows))
    if scale is None:
        return q
    wide = torch.promote_types(q.dtype, torch.float32)
    return (q * scale[..., None].to(wide)).to(q.dtype)


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


def _kernel(q: Tensor, k: Tensor, v: Tensor, table: KernelTable) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    offset = keys - queries
    outs = []
    for start in range(0, queries, table.chunk):
        stop = min(start + table.chunk, queries)
        seen = offset + stop
        bias, lowest = table.view(offset + start, seen - 1)
        if q.device.type != "cpu":
            bias = _aligned(bias)
        rows = F.scaled_dot_product_attention(
            q[:, :, start:stop].flip(2),
            k[:, :, lowest:seen],
            v[:, :, lowest:seen],
            attn_mask=bias.expand(q.shape[0], -1, -1, -1),
        )
        outs.append(rows.flip(2))
    return torch.cat(outs, dim=2)


def _aligned(bias: Tensor) -> Tensor:
    """A copy whose rows start at multiples of 8 elements, as CUDA's fused attention asks."""
    padded = F.pad(bias, (0, -bias.shape[-1] % 8))
    return padded[..., : bias.shape[-1]]


def _general(q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, observed: Any) -> Tensor:
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    turned = _rotated(q, k, scheme)
    anew = torch.is_grad_enabled() and batch * heads * queries * keys > RECOMPUTE_ELEMENTS
    most = min(GENERAL_CHUNK_ELEMENTS, RECOMPUTE_ELEMENTS) if anew else GENERAL_CHUNK_ELEMENTS
    rows = max(1, min(queries, most // (batch * heads * keys)))
    out = []
    for start in range(0, queries, rows):
        block = _Block((q, k), turned, slice(start, min(start + rows, queries)), scheme)
        args = (block, v, scheme, observed)
        out.append(
            checkpoint(_score_block, *args, use_reentrant=False, preserve_rng_state=False)
            if anew
            else _score_block(*args)
        )
    return torch.cat(out, dim=2)


class _Block:
    """Some rows of the queries and every key one of them may see, plain and rotated."""

    def __init__(
        self, plain: tuple[Tensor, Tensor], turned: tuple[Tensor, Tensor], rows: slice, scheme: Scheme
    ) -> None:
        (q, k), (turned_q, turned_k) = plain, turned
        offset = k.shape[2] - q.shape[2]
        first, stop = offset + rows.start, offset + rows.stop
        self.q, self.turned_q = q[:, :, rows], turned_q[:, :, rows]
        self.rows = torch.arange(first, stop, device=q.device)
        self.columns = keys_in_reach(scheme, first, stop, q.device)
        self.k, self.turned_k = self.keys(k), self.keys(turned_k)
        positions = scheme.augmented(torch.arange(k.shape[2], device=q.device))
        self.positions_q, self.positions_k = positions[self.rows], positions[self.columns]

    def keys(self, x: Tensor) -> Tensor:
        """``x [B, H, K, d]`` at the block's keys."""
        count = len(self.columns)
        if count == self.rows[-1] + 1:
            return x[:, :, :count]
        return x.index_select(2, self.columns)


def _score_block(block: _Block, v: Tensor, scheme: Scheme, observed: Any) -> Tensor:
    """Outside autocast: products, softmax and what a scheme computes are float32 at least."""
    with torch.autocast(v.device.type, enabled=False):
        return _scored(block, v, scheme, observed)


def _scored(block: _Block, v: Tensor, scheme: Scheme, observed: Any) -> Tensor:
    positions_q, positions_k = block.positions_q, block.positions_k
    q, k = block.turned_q, block.turned_k
    dtype = torch.promote_types(q.dtype, torch.float32)
    distance = positions_q[:, None] - positions_k
    scores = q.to(dtype) @ k.transpose(-1, -2).to(dtype)
    for far, moved_q, moved_k in scheme.remap(positions_q, positions_k):
        scaled = _scaled(block.q, scheme, positions_q, block.rows)
        far_q, far_k = scheme.rotate(scaled, block.k, moved_q, moved_k)
        scores = torch.where(far, far_q.to(dtype) @ far_k.transpose(-1, -2).to(dtype), scores)
        distance = torch.where(far, moved_q[:, None] - moved_k, distance)
    scores = scores * q.shape[-1] ** -0.5
    if scheme.softcap is not None:
        scores = scheme.softcap * torch.tanh(scores / scheme.softcap)
    if scheme.implements("weight") or scheme.implements("kernel"):
        every, index = _distances(distance.clamp(min=0), dtype)
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
        extra = (observed,) if scheme.implements("observe") else ()
        scores = scheme.score(scores, q, k, positions_q, positions_k, *extra)
    weights = scheme.attend(scores, seen(scheme, positions_q, positions_k), positions_q, positions_k)
    out: Tensor = weights @ block.keys(v).to(weights.dtype)
    return out.to(v.dtype)


def _distances(distance: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every distance that occurs ``[n]``, and where each of ``distance`` is among them."""
    if distance.is_floating_point():  # positions moved by fractions
        every, index = torch.unique(distance, return_inverse=True)
        return every.to(dtype), index
    return torch.arange(int(distance.max()) + 1, device=distance.device, dtype=dtype), distance


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, observed: Any = None
) -> Tensor:  # fmt: skip
    """The whole score matrix at once, as the KERPLE release does: the oracle, O(H L^2) memory."""
    block = _Block((q, k), _rotated(q, k, scheme), slice(0, q.shape[2]), scheme)
    return _score_block(block, v, scheme, observed)
