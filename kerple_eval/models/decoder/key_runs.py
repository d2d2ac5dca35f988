"""Attention by runs of keys, on the CPU: masks and moved positions without scores in memory.

Where a scheme rotates, hides and moves and does nothing else, the keys that a block of query rows sees fall
into a few runs of consecutive keys: each under one move (:meth:`Scheme.remap`), seen by every row of the
block or, at the edges, by some. A run is one call of torch's fused attention, which gives the logarithm of
each row's sum too; by these the outputs of the runs are put together, and a sink is one more sum, of no
output. The result is that of scores in memory but for rounding (docs/decisions/2026-11-28.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kerple_eval.models.decoder.fused import attend_with_sums
from kerple_eval.schemes.base import Scheme

MOST_RUNS = 32  # of a block; where a mask is scattered more, scores in memory take less
STRIP_ELEMENTS = 1 << 19  # pairs of a block whose masks are computed at once: in the cache

#: Queries and keys ``[B, H, N, d]`` as move n has them: 0 as they stand, n the n-th of ``Scheme.remap``.
Rotated = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Run:
    """The keys ``start .. stop - 1``, for the pairs that take the positions of ``move``.

    ``mask`` bool ``[rows, stop - start]``: which rows of the block see which; None: each sees all or, where
    ``is_causal``, row r the first r + 1.
    """

    move: int
    start: int
    stop: int
    mask: Tensor | None
    is_causal: bool = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Output ``[B, H, rows, d]`` and log-sums ``[B, H, rows]``; 0 and -inf for a row that sees no key."""
        k, v = k[:, :, self.start : self.stop], v[:, :, self.start : self.stop]
        if self.mask is None:
            return attend_with_sums(q, k, v, is_causal=self.is_causal)
        bias = q.new_zeros(self.mask.shape).masked_fill_(~self.mask, -torch.inf)
        out, sums = attend_with_sums(q, k, v, bias)
        blind = ~self.mask.any(dim=1)
        return out.masked_fill(blind[:, None], 0), sums.masked_fill(blind, -torch.inf)


class KeyRuns:
    """The runs of each block of ``rows`` query rows, found once for all layers that see and move alike."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.scattered = False  # whether a block had too many
        self._found: dict[tuple[int, int], list[Run]] = {}

    @staticmethod
    def serves(scheme: Scheme, device: torch.device) -> bool:
        """Whether attention with ``scheme`` is computed so, without gradients: nothing changes its scores."""
        hooks = ("weight", "kernel", "bias", "score", "attend")
        changed = scheme.softcap is not None or scheme.augments or any(map(scheme.implements, hooks))
        return device.type == "cpu" and not changed

    def attend(self, rotated: Rotated, v: Tensor, scheme: Scheme, queries: int) -> Tensor | None:
        """Attention output ``[B, H, queries, d]`` of the last ``queries`` positions, in v's dtype.

        None where the keys are too scattered for it.
        """
        wide = torch.promote_types(v.dtype, torch.float32)
        values, offset = v.to(wide), v.shape[2] - queries
        moved: dict[int, tuple[Tensor, Tensor]] = {}
        out = []
        for start in range(0, queries, self.rows):
            stop = min(start + self.rows, queries)
            runs = self._runs(scheme, offset + start, offset + stop)
            if self.scattered:
                return None
            parts = []
            for run in runs:
                if run.move not in moved:
                    q, k = rotated(run.move)
                    moved[run.move] = (q.to(wide), k.to(wide))
                q, k = moved[run.move]
                parts.append(run.attend(q[:, :, start:stop], k, values))
            out.append(_together(parts, scheme.sink()))
        return torch.cat(out, dim=2).to(v.dtype)

    def _runs(self, scheme: Scheme, first: int, stop: int) -> list[Run]:
        """The runs of the queries ``first .. stop - 1``."""
        if (first, stop) not in self._found:
            self._found[first, stop] = _find(scheme, torch.arange(first, stop))
            self.scattered |= len(self._found[first, stop]) > MOST_RUNS
        return self._found[first, stop]


def keys_in_reach(scheme: Scheme, first: int, stop: int, device: torch.device) -> Tensor:
    """Numbers of the keys that the queries ``first .. stop - 1`` may see, ascending.

    A mask hides the keys between its first ones and those near the first query from all of these queries.
    Content is read from every key: a scheme that changes scores by it takes all.
    """
    keys = torch.arange(stop, device=device)
    masks = [] if scheme.implements("score") else scheme.masks()
    for near, kept in masks:
        keys = keys[(keys < kept) | (keys > first - near)]
    return keys


def seen(scheme: Scheme, positions_q: Tensor, positions_k: Tensor) -> Tensor:
    """Which queries see which keys: bool ``[Q, K]``."""
    distance = positions_q[:, None] - positions_k
    pairs = distance >= 0
    if scheme.window:
        pairs = pairs & (distance < scheme.window)
    visible = scheme.visible(positions_q, positions_k)
    return pairs if visible is None else pairs & visible


def _find(scheme: Scheme, rows: Tensor) -> list[Run]:
    """The runs of the query positions ``rows [R]``, each move's in the order of their keys."""
    runs: dict[int, list[Run]] = {}
    columns = keys_in_reach(scheme, int(rows[0]), int(rows[-1]) + 1, rows.device)
    for strip in torch.split(columns, max(1, STRIP_ELEMENTS // len(rows))):
        stays = seen(scheme, rows, strip)
        moves = [far & stays for far, _, _ in scheme.remap(rows, strip)]
        for far in moves:
            stays = stays & ~far
        for move, pairs in enumerate([stays, *moves]):
            runs.setdefault(move, []).extend(_consecutive(move, pairs, strip))
    return [run for move in sorted(runs) for run in _joined(runs[move])]


def _consecutive(move: int, pairs: Tensor, columns: Tensor) -> list[Run]:
    """The runs of the bool ``pairs [R, K]``; ``columns [K]`` numbers the keys, ascending."""
    some, every = pairs.any(dim=0), pairs.all(dim=0)
    kind = some.long() + every  # how many of: seen by a row, seen by every row
    cut = (kind[1:] != kind[:-1]) | (columns[1:] != columns[:-1] + 1)
    edges = [0, *(cut.nonzero()[:, 0] + 1).tolist(), len(columns)]
    return [
        Run(move, int(columns[a]), int(columns[b - 1]) + 1, None if every[a] else pairs[:, a:b].clone())
        for a, b in itertools.pairwise(edges)
        if some[a]
    ]


def _joined(runs: list[Run]) -> list[Run]:
    """``runs`` of one move, with those put together that a strip's end has cut."""
    joined: list[Run] = []
    for run in runs:
        before = joined[-1] if joined else None
        if before and before.stop == run.start and (before.mask is None) == (run.mask is None):
            masks = [mask for mask in (before.mask, run.mask) if mask is not None]
            joined[-1] = Run(run.move, before.start, run.stop, torch.cat(masks, dim=1) if masks else None)
        else:
            joined.append(run)
    return _with_triangle(joined)


def _with_triangle(runs: list[Run]) -> list[Run]:
    """The same with a triangle at their end said to be causal: with the key before it, which all rows see."""
    if len(runs) < 2 or runs[-2].stop != runs[-1].start:
        return runs
    *rest, before, last = runs
    if before.mask is not None or last.mask is None:
        return runs
    rows = last.mask.shape[0]
    if not torch.equal(last.mask, last.mask.new_ones(rows, rows - 1).tril(-1)):
        return runs
    start = last.start - 1
    cut = [Run(before.move, before.start, start, None)] if before.start < start else []
    return [*rest, *cut, Run(last.move, start, last.stop, None, is_causal=True)]


def _together(parts: Sequence[tuple[Tensor, Tensor]], sink: Tensor | None) -> Tensor:
    """The output ``[B, H, R, d]`` of one softmax over all runs, by their log-sums, and a sink ``[H]``."""
    if len(parts) == 1 and sink is None:
        return parts[0][0]
    sums = torch.stack([part for _, part in parts])
    if sink is None:
        shares = sums.softmax(dim=0)
    else:
        column = sink.to(sums.dtype)[:, None].expand_as(sums[:1])
        shares = torch.cat([sums, column]).softmax(dim=0)
    out = parts[0][0] * shares[0][..., None]
    for (part, _), share in zip(parts[1:], shares[1:], strict=False):
        out = out + part * share[..., None]
    return out
