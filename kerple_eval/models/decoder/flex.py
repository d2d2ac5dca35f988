"""Attention through torch's FlexAttention: the kernel looked up inside the fused loop, windows as blocks.

For schemes whose position is a function of distance (``kernel``, ``weight``, ``window``, rotations): no
bias is ever stored but a table ``[H, reach]``, which the loop reads (7 instructions a score more than none,
by ``results/benchmarks/sm90.md``; the formulas of kerple-log and kerple-power took several times as many). A
scheme whose formula is cheaper than that, as alibi's (4), gives it as ``Scheme.inline``. In training the
backward pass adds each score's gradient at its distance, and autograd goes on from there. Blocks of 128 x 128
that lie in the future or beyond the window are not visited. Scores and bias are float32 whatever the model's
dtype.

Compiled on CUDA, once for each shape, so shapes are rounded up to few: rows and keys to quarter octaves
(512, 640, 768, 896, 1024, 1280, ...), the added ones being zeros that no real query sees; windows go in
groups of about ``GROUP`` tokens, enough to fill a card, the last group rounded up to a power of two.
Where torch refuses to compile a further shape that is an error, never its slow form. On the CPU it runs
as plain operations and holds every score: for tests.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.models.decoder.flex_blocks import choose, shared_memory_limit
from kerple_eval.models.decoder.flex_pruning import PAYS, pruned_by_blocks
from kerple_eval.models.decoder.pruning import WORTHWHILE, KernelBounds, PrunedShare
from kerple_eval.schemes.base import Scheme

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
GROUP = 16384  # tokens of a call
MOST_PROGRAMS = 256  # programs that may be compiled in one process


def rung(count: int) -> int:
    """``count`` rounded up to a quarter of its octave, and to whole blocks."""
    step = max(BLOCK, (1 << (count.bit_length() - 1)) // 4)
    return -(-count // step) * step


def groups(batch: int, keys: int) -> list[tuple[int, int]]:
    """How many windows each call takes, and for how many it is compiled: a power of two."""
    full = 1 << (max(1, GROUP // keys).bit_length() - 1)
    rest = batch % full
    return [(full, full)] * (batch // full) + ([(rest, 1 << (rest - 1).bit_length())] if rest else [])


def programs(batch: int, inputs: int, rows: int) -> set[tuple[int, int, int]]:
    """(windows, rows, keys) of the programs a pass calls: layers over all rows, the last over scored rows."""
    keys = rung(inputs)
    shapes = {min(keys, rung(n + keys - inputs)) for n in (inputs, rows)}
    return {(compiled, n, keys) for _, compiled in groups(batch, keys) for n in shapes}


def flex_serves(scheme: Scheme) -> bool:
    """Whether position enters through functions of distance (and rotations) alone."""
    hooks = ("bias", "score", "sink", "visible", "remap", "attend")
    changed = scheme.softcap is not None or scheme.augments
    return not (changed or any(scheme.implements(hook) for hook in hooks))


class FlexScores:
    """A scheme's kernel and weight for windows of at most ``reach`` tokens, shared by all layers."""

    def __init__(
        self, scheme: Scheme, reach: int, dtype: torch.dtype, device: torch.device, *, prune: bool = False
    ) -> None:
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in scheme.parameters())
        self.window = scheme.window
        wide = torch.promote_types(dtype, torch.float32)
        distance = torch.arange(rung(reach), device=device).to(wide)
        self.inline = None if learns else scheme.inline(device)
        kernel = scheme.kernel(distance) if self.inline is None else None
        weight = scheme.weight(distance)
        self.kernel = None if kernel is None else kernel.contiguous()
        self.weight = None if weight is None else weight.contiguous()
        self.wide = wide
        self.bounds = self._bounds(scheme, distance) if prune else None
        self.pruned = PrunedShare()

    def _bounds(self, scheme: Scheme, distance: Tensor) -> KernelBounds | None:
        """For leaving out keys, where that can be worth its norms."""
        kernel = scheme.kernel(distance)
        assert kernel is not None
        if self.window is not None:
            kernel = kernel.masked_fill(distance >= self.window, -torch.inf)
        bounds = KernelBounds(kernel.flip(1).contiguous(), len(distance))
        return bounds if bounds.worthwhile(max(WORTHWHILE, PAYS / len(distance))) else None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Output ``[B, H, Q, d]`` of scaled and rotated vectors; the queries are the last of the keys."""
        rows, keys = q.shape[2], k.shape[2]
        all_keys = rung(keys)  # :func:`programs` counts by the same arithmetic
        behind = all_keys - keys  # zeros after the last position: in every real query's future
        all_rows = min(all_keys, rung(rows + behind))
        sizes = all_rows, all_keys, self.window
        if self.bounds is None or torch.is_grad_enabled():
            return self._attend(q, k, v, _blocks(*sizes, q.device), behind)

        def attend(first: Tensor, wanted: Tensor | None) -> Tensor:
            return self._attend(q, k, v, _blocks_from(first, wanted, *sizes), behind)

        starts = torch.arange(all_keys - all_rows, all_keys, BLOCK, device=q.device)
        before = all_rows - rows - behind
        out, share = pruned_by_blocks(q, k, v, self.bounds, attend, starts=starts, before=before, block=BLOCK)
        self.pruned.add(share)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, behind: int) -> Tensor:
        """The same over the blocks of ``mask``; ``behind``: zeros after the last position."""
        rows = q.shape[2]
        all_rows, all_keys = mask.seq_lengths
        before = all_rows - rows - behind
        score_mod = self._score_mod(all_keys - all_rows)
        run = _compiled() if q.device.type == "cuda" else _uncompiled()
        options = self._options(q)
        outs, start = [], 0
        for count, compiled in groups(len(q), all_keys):
            part, extra = slice(start, start + count), compiled - count
            out = run(
                _padded(q[part], before, behind, extra),
                *(_padded(x[part], 0, behind, extra) for x in (k, v)),
                score_mod=score_mod,
                block_mask=mask,
                kernel_options=options,
            )
            outs.append(out[:count, :, before : before + rows])
            start += count
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _options(self, q: Tensor) -> dict[str, int] | None:
        """Block sizes that fit the card; ``backends`` has found that there are some."""
        if q.device.type != "cuda":
            return None
        tables = (self.kernel is not None) + (self.weight is not None)
        limit = shared_memory_limit(q.device)
        blocks = choose(q.shape[3], q.dtype.itemsize, tables, limit)
        assert blocks is not None
        return blocks.options(limit)

    def _score_mod(self, offset: int) -> Any:
        """What happens to the score of query row i, at position ``offset + i``, and key j in head h."""
        inline, kernel, weight, wide = self.inline, self.kernel, self.weight, self.wide
        if inline is None and kernel is None and weight is None:
            return None

        def change(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            distance = (i + offset - j).clamp(min=0)  # the future is masked afterwards
            if weight is not None:
                score = score * weight[h, distance]
            if inline is not None:
                return score + inline(distance.to(wide), h)
            return score if kernel is None else score + kernel[h, distance]

        return change


def _padded(x: Tensor, before: int, behind: int, extra: int) -> Tensor:
    """``[B, H, N, d]`` with zeros around its rows and after its windows; itself where none are asked for."""
    if not (before or behind or extra):
        return x
    return F.pad(x, (0, 0, before, behind, 0, 0, 0, extra))


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # a cached mask serves training too, which cannot save inference tensors
def _blocks(rows: int, keys: int, window: int | None, device: torch.device) -> BlockMask:
    return _mask(*_seen(rows, keys, window, device), rows, keys, window)


def _blocks_from(
    first: Tensor, wanted: Tensor | None, rows: int, keys: int, window: int | None
) -> BlockMask:  # fmt: skip
    """Of each head the blocks of keys from ``first [H, R]`` on, for the blocks of queries in ``wanted``."""
    seen, whole = _seen(rows, keys, window, first.device)
    part = torch.arange(seen.shape[2], device=first.device) >= first[..., None]
    if wanted is not None:
        part = part & wanted[..., None]
    return _mask(seen & part, whole & part, rows, keys, window)


def _seen(rows: int, keys: int, window: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which blocks are seen at all and which in whole, ``[1, R, C]``, by arithmetic: no [rows, keys] mask is
    formed."""
    offset, limit = keys - rows, keys + 1 if window is None else window
    first = torch.arange(0, rows, BLOCK, device=device)[:, None] + offset
    key = torch.arange(0, keys, BLOCK, device=device)
    nearest, farthest = first - (key + BLOCK - 1), first + BLOCK - 1 - key
    seen = (farthest >= 0) & (nearest < limit)
    whole = (nearest >= 0) & (farthest < limit)
    return seen[None], whole[None]


def _mask(seen: Tensor, whole: Tensor, rows: int, keys: int, window: int | None) -> BlockMask:
    """Of blocks ``[1 or H, R, C]``."""
    from torch.nn.attention.flex_attention import BlockMask  # noqa: PLC0415

    offset, limit = keys - rows, keys + 1 if window is None else window

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        distance = i + offset - j
        return (distance >= 0) & (distance < limit)

    return BlockMask.from_kv_blocks(
        *_ordered(seen & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(rows, keys),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row ``[1, H, R]``, and their numbers first ``[1, H, R, C]``."""
    indices = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1).int()[None], indices.int()[None]


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # noqa: PLC0415

    return _allowing_shapes(MOST_PROGRAMS, torch.compile(flex_attention, dynamic=False, fullgraph=True))


def _allowing_shapes(count: int, compiled: Any) -> Any:
    """``compiled``, during whose calls torch keeps ``count`` programs: its limit (8 in torch 2.13) counts
    every shape.

    The setting is private, and the process's, so it is put back. Where a torch has none of that name, the
    limit stays, and ``fullgraph=True`` makes a shape beyond it an error, never a silent slow form.
    """
    try:
        from torch._dynamo import config  # noqa: PLC0415
    except ImportError:
        return compiled
    names = ("recompile_limit", "accumulated_recompile_limit")
    limits = {name: max(getattr(config, name), count) for name in names if hasattr(config, name)}
    return config.patch(limits)(compiled) if limits else compiled


def _uncompiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # noqa: PLC0415

    return flex_attention
