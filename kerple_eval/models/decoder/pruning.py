"""Attention without the keys whose weight is lost in rounding: chosen by a bound, certified afterwards.

Query i (row vector q_i, already rotated and scaled) gives key j at distance D = i - j the score
``s_ij = q_i k_j / sqrt(d) + b_ij``, with ``b_ij = kernel(D)`` or, of a scheme whose gates forget
(:meth:`Scheme.decay`), ``c_i - c_j``. So, beside its own key, which always takes part,

    exp(s_ij - s_ii) <= exp(|q_i| max |k| / sqrt(d) + b_ij - s_ii)

Let e_i be at least the sum of that over the keys left out (of a kernel, which is summed over every distance
from the nearest of them on; of gates, their number times the largest), V their largest |v|, Z the
softmax's denominator over the keys that took part, and o_i the output they give. The whole output is
``(Z o_i + N) / (Z + z)`` with |N| <= e_i Z V and 0 <= z <= e_i Z, as Z >= exp(s_ii) after the same shift; so
no element of it differs from o_i by more than ``e_i (V + max |o_i|)``. A row is certified where that is at
most 2^-24 (2^-53 in float64) of ``max |o_i|``, the row's largest element: half a unit in the last place of a
number of that size. The bound looks at values too: a key of weight 2^-25 whose value is 2^30 matters.

Keys are left out by whole rows of a chunk of queries, head by head, where e_i alone lies ``MARGIN`` below the
bound; a chunk with a row that is then not certified is computed again with all its keys. Where a head sees
far, several chunks attend at once, over the keys of them all: more scores, but each of them faster. The same
idea, without the values and the certificate, is Lin et al., "Adaptive Computation Pruning for the Forgetting
Transformer" (arXiv 2504.06949).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.models.decoder.toeplitz import hankel

CHUNK = 256  # query rows that attend at once
BLOCK = 64  # keys are left out by so many
TALL = 768  # rows: from here on torch's fused CPU attention takes 256 of them at a time, below it 64
JOINED = 1.15  # chunks attend at once where that is at most so many times the scores
CALL = 1 << 18  # scores that take as long as one more call of torch's attention
MARGIN = 2.0**-10  # for values larger than outputs, which are not known beforehand
SLACK = 1e-3  # of an exponent: the bound itself is computed in float32
WORTHWHILE = 0.1  # of the causal scores: where the kernel alone could not leave out so many, nothing is tried


@dataclass
class PrunedShare:
    """How many of the causal scores were computed, and the largest certified relative change of an output."""

    scores: int = 0
    causal: int = 0
    bound: float = 0.0

    def add(self, other: PrunedShare) -> None:
        self.scores += other.scores
        self.causal += other.causal
        self.bound = max(self.bound, other.bound)

    @property
    def left_out(self) -> float:
        return 1 - self.scores / self.causal if self.causal else 0.0


class KernelBounds:
    """A kernel ``[H, reach]`` by falling distance (``values``), and what it sums to from a distance on."""

    slides = True  # bias moves along with the queries

    def __init__(self, values: Tensor, reach: int) -> None:
        self.values = values  # [H, >= reach]; element t is the kernel at distance reach - 1 - t
        self.reach = reach
        self.rows = values.shape[1] - reach + 1  # that may attend at once
        #: log of the sum of exp(kernel) at that distance and beyond
        self.beyond = values[:, :reach].double().logcumsumexp(dim=1).to(values.dtype).contiguous()
        self.nearest = values[:, reach - 1]  # [H], at distance 0
        self.dtype = values.dtype
        self.rounding = 2.0 ** (-53 if values.dtype == torch.float64 else -24)

    def first(self, excess: Tensor, start: int) -> Tensor:
        """The first key ``[H]`` that takes part for the queries from position ``start`` on, whose exponents
        without the kernel are at most ``excess [B, H, rows]``."""
        cut = self.cut(excess.amax(dim=(0, 2))[:, None])[:, 0]
        return (start + 1 - cut).clamp(min=0)

    def left(self, positions: Tensor, lowest: Tensor) -> Tensor:
        """Log of the sum of exp(bias), or more, over the keys before ``lowest [H, Q]``, for queries at
        ``positions [Q]``: ``[H, Q]``."""
        distance = (positions - lowest + 1).clamp(max=self.reach - 1)
        return self.beyond.gather(1, self.reach - 1 - distance)

    def bias(self, heads: slice, first: int, last: int, lowest: int) -> Tensor:
        """``[1, h, rows, keys]`` of query positions last .. first and the keys lowest .. last."""
        return hankel(self.values[heads], self.reach, first, last, lowest)

    def cut(self, excess: Tensor) -> Tensor:
        """The distance ``[H, n]`` from which all keys weigh nothing in rows whose exponent without the
        kernel, ``|q| max |k| / sqrt(d) - s_ii``, is at most ``excess [H, n]``."""
        limit = math.log(self.rounding * MARGIN) - SLACK - excess
        beyond = torch.searchsorted(self.beyond, limit.contiguous(), right=True)
        return (self.reach - beyond).clamp(min=1)  # a query's own key takes part, even where it is NaN

    def worthwhile(self, least: float = WORTHWHILE) -> bool:
        """Whether a share ``least`` could be left out with the least excess there can be: -kernel(0)."""
        near = self.cut(-self.nearest[:, None]).double() / self.reach
        return float((1 - near).clamp(min=0).square().mean()) >= least


class GateBounds:
    """The same of gates: c ``[B, H, N]`` (``Scheme.decay``), float64, of scores in ``dtype``."""

    slides = False

    def __init__(self, decay: Tensor, dtype: torch.dtype) -> None:
        self.decay = decay
        self.rows = CHUNK  # that may attend at once: the bias is no view
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.nearest = decay.new_zeros(decay.shape[1], dtype=self.dtype)
        self.rounding = 2.0 ** (-53 if self.dtype == torch.float64 else -24)

    def first(self, excess: Tensor, start: int) -> Tensor:
        stop = start + excess.shape[2]
        limit = math.log(self.rounding * MARGIN / stop) - SLACK - excess
        least = (self.decay[:, :, start:stop] - limit).amax(dim=2, keepdim=True)  # c_j left out by every row
        return (self.decay[:, :, : start + 1] >= least).sum(dim=2).clamp(max=start).amin(dim=0)

    def left(self, positions: Tensor, lowest: Tensor) -> Tensor:
        left = (lowest - 1).clamp(min=0).expand(len(self.decay), -1, -1)
        count = lowest.clamp(min=1).to(self.decay.dtype).log()
        return (self.decay[:, :, positions] - self.decay.gather(2, left) + count).to(self.dtype)

    def bias(self, heads: slice, first: int, last: int, lowest: int) -> Tensor:
        rows = torch.arange(last, first - 1, -1)
        decay = self.decay[:, heads]
        added = (decay[:, :, rows, None] - decay[:, :, None, lowest : last + 1]).to(self.dtype)
        return added.masked_fill(torch.arange(lowest, last + 1) > rows[:, None], -math.inf)


Bounds = KernelBounds | GateBounds


def pruned_attention(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> tuple[Tensor, PrunedShare]:
    """Output ``[B, H, Q, d]``; the queries are the last Q of the K positions."""
    work = _Pruned(q, k, v, bounds)
    work.attend_near()
    work.attend_uncertified()
    return work.out, work.share


class Certificate:
    """Norms of a layer's queries, keys and values, and what they prove of keys that were left out."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> None:
        self.bounds = bounds
        offset, wide, scale = k.shape[2] - q.shape[2], bounds.dtype, q.shape[-1] ** -0.5
        self.positions = torch.arange(offset, k.shape[2], device=q.device)
        self.q_norm = q.to(wide).norm(dim=-1) * scale  # [B, H, Q]
        self.k_most = k.to(wide).norm(dim=-1).cummax(dim=-1).values  # [B, H, K], of keys 0..j
        self.v_most = _largest(v).to(wide).cummax(dim=-1).values
        diagonal = (q.to(wide) * k[:, :, offset:].to(wide)).sum(-1) * scale
        self.own = diagonal + bounds.nearest[None, :, None]  # s_ii, [B, H, Q]
        self.excess = self.q_norm * self.k_most[:, :, offset:] - self.own  # of the exponents, [B, H, Q]

    def errors(self, out: Tensor, lowest: Tensor) -> Tensor:
        """The bound ``e_i (V + max |o_i|) / max |o_i|`` of every row, the batch's largest: ``[H, Q]``.

        ``out [B, H, Q, d]`` is what the keys from ``lowest [H, Q]`` on give.
        """
        left = (lowest - 1).clamp(min=0).expand(len(out), -1, -1)  # the nearest key that is left out
        biases = self.bounds.left(self.positions, lowest)
        exponent = self.q_norm * self.k_most.gather(2, left) + biases - self.own + SLACK
        largest = _largest(out).to(biases.dtype)
        relative = exponent.exp() * (self.v_most.gather(2, left) + largest) / largest
        relative = torch.where(relative.isnan(), torch.inf, relative)  # an output of zeros is not certified
        return torch.where(lowest > 0, relative, 0.0).amax(dim=0)


class _Pruned(Certificate):
    def __init__(self, q: Tensor, k: Tensor, v: Tensor, bounds: Bounds) -> None:
        super().__init__(q, k, v, bounds)
        self.q, self.k, self.v = q, k, v
        self.offset = k.shape[2] - q.shape[2]
        self.every = slice(0, q.shape[2])
        self.out = torch.empty_like(v[:, :, self.offset :])
        self.lowest = torch.empty(q.shape[1:3], dtype=torch.int64)  # [H, Q]: the first key that takes part
        self.share = PrunedShare()

    def attend_near(self) -> None:
        """Every query over the keys that its chunk's bound does not rule out."""
        for rows in _chunks(self.every, CHUNK):
            first = self.bounds.first(self.excess[:, :, rows], self.offset + rows.start) // BLOCK * BLOCK
            self.lowest[:, rows] = first[:, None]
        left = torch.ones(len(self.lowest), -(-self.every.stop // CHUNK), dtype=torch.bool)  # of its chunks
        for tall in _chunks(self.every, self.bounds.rows):
            joined = self._joined(tall)
            left[joined, tall.start // CHUNK : -(-tall.stop // CHUNK)] = False
            self._attend_alike(tall, joined)
        if self.bounds.slides:
            for head in range(len(left)):
                self._attend_in_a_row(head, left[head])
        for number, rows in enumerate(_chunks(self.every, CHUNK)):
            self._attend_alike(rows, left[:, number])
        self.share.causal = self._scores(self.every, 0) * len(self.lowest)

    def _attend_alike(self, rows: slice, members: Tensor) -> None:
        """The heads ``members [H]``, those side by side whose first key is the same at once."""
        first = torch.where(members, self.lowest[:, rows].amin(dim=1), -1)
        for lowest, group in groupby(enumerate(first.tolist()), key=lambda pair: pair[1]):
            heads = [head for head, _ in group]
            if lowest >= 0:
                self._attend(slice(heads[0], heads[-1] + 1), rows, lowest)

    def _attend_in_a_row(self, head: int, left: Tensor) -> None:
        """The last chunks of ``head`` as one batch, each over as many keys as the one that sees farthest,
        where that takes less than chunk by chunk. They are no longer ``left [chunks]`` then."""
        stops = self.offset + CHUNK * torch.arange(1, self.every.stop // CHUNK + 1)
        spans = stops - self.lowest[head, : CHUNK * len(stops) : CHUNK]
        widest = spans.flip(0).cummax(dim=0).values.flip(0)  # of a chunk and those after it
        fits = left[: len(stops)] & (widest <= stops)
        begin = int((~fits).nonzero()[-1]) + 1 if not fits.all() else 0
        count = len(stops) - begin
        if count < 2 or count * widest[begin] >= spans[begin:].sum() + (count - 1) * CALL // CHUNK:
            return
        span = int(widest[begin])
        rows = slice(begin * CHUNK, len(stops) * CHUNK)
        keys = slice(int(stops[begin]) - span, int(stops[-1]))
        last = int(stops[begin]) - 1
        bias = self.bounds.bias(slice(head, head + 1), last + 1 - CHUNK, last, keys.start)
        found = F.scaled_dot_product_attention(
            self.q[:, head, rows].reshape(len(self.q), count, CHUNK, -1).flip(2),
            self.k[:, head, keys].unfold(1, span, CHUNK).transpose(2, 3),
            self.v[:, head, keys].unfold(1, span, CHUNK).transpose(2, 3),
            attn_mask=bias.expand(len(self.q), count, -1, -1),
        )
        self.out[:, head, rows] = found.flip(2).flatten(1, 2)
        self.lowest[head, rows] = (stops[begin:] - span).repeat_interleave(CHUNK)
        self.share.scores += sum(
            self._scores(c, int(self.lowest[head, c.start])) for c in _chunks(rows, CHUNK)
        )
        left[begin : len(stops)] = False

    def _joined(self, tall: slice) -> Tensor:
        """The heads ``[H]`` whose chunks within ``tall`` attend faster at once."""
        stop, lowest = int(tall.stop), self.lowest[:, tall]
        count = stop - int(tall.start)
        one_by_one = (self.positions[tall] + CHUNK // 2 - lowest).sum(dim=1)
        at_once = count * (self.offset + stop - lowest.amin(dim=1))
        return (at_once <= JOINED * one_by_one) & (count >= TALL)

    def attend_uncertified(self) -> None:
        """Chunks with a row whose bound is not met, head by head, over all keys."""
        errors = self.errors(self.out, self.lowest)
        for rows in _chunks(self.every, CHUNK):
            failing = (errors[:, rows] > self.bounds.rounding).any(dim=-1)
            for head in failing.nonzero()[:, 0].tolist():
                self._attend(slice(head, head + 1), rows, 0)
                errors[head, rows] = 0
        self.share.bound = float(errors.max())

    def _attend(self, heads: slice, rows: slice, lowest: int) -> None:
        seen = self.offset + rows.stop
        bias = self.bounds.bias(heads, self.offset + rows.start, seen - 1, lowest)
        found = F.scaled_dot_product_attention(
            self.q[:, heads, rows].flip(2),
            self.k[:, heads, lowest:seen],
            self.v[:, heads, lowest:seen],
            attn_mask=bias.expand(len(self.q), -1, -1, -1),
        )
        self.out[:, heads, rows] = found.flip(2)
        self.lowest[heads, rows] = lowest
        self.share.scores += self._scores(rows, lowest) * bias.shape[1]

    def _scores(self, rows: slice, lowest: int) -> int:
        """Scores of one head's rows over keys from ``lowest`` on, without the future ones."""
        first, stop = int(rows.start), int(rows.stop)
        count = stop - first
        return count * (self.offset + first - lowest) + count * (count + 1) // 2


def _largest(x: Tensor) -> Tensor:
    """Largest magnitude of each row, never -0.0; a third of the time of ``x.abs().amax(-1)``."""
    return torch.maximum(x.amax(dim=-1), -x.amin(dim=-1)).abs()


def _chunks(rows: slice, size: int) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))
