"""PaTH: keys reach a query through a product of Householder-like steps, read from the text.

Source: Yang et al., "PaTH Attention: Position Encoding via Accumulating Householder Transformations" (arXiv
2505.16381), Eq. (3) and Section 3; code fla-org/flash-linear-attention, ``fla/layers/path_attn.py``,
``fla/ops/path_attn/naive.py``.

    logit_ij = k_j^T (prod_{s=j+1..i} H_s) q_i / sqrt(d),   H_s = I - beta_s w_s w_s^T

w_s ``[d]`` of unit length: the layer's normed input x through two linear maps (W -> M -> H d, M = 32
``units``), a causal convolution of each channel with itself over C = 3 ``columns``, SiLU, and division by
sqrt(|w|^2 + 1e-6); beta_s = 2 sigmoid(u_h x_s + c_h). Each layer has its own: 2 W M + W C + W H + H a layer.

Scores are exact: inside a block of 64 tokens the product is solved for in closed form (the UT
transform), and a query's vector is carried from block to block, O(L^2 d) in matrix products. Outside
training a layer solves each block once for all chunks of its queries. Losses do not depend on later tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.networks import Conv1d, Linear, reset_linear
from kerple_eval.types import Geometry, UserError

BLOCK = 64


class Path(Scheme):
    per_layer: ClassVar[bool] = True

    def __init__(self, geometry: Geometry, *, units: int = 32, columns: int = 3) -> None:
        super().__init__(geometry)
        if units < 1 or columns < 1:
            raise UserError(f"path: units={units} and columns={columns} must be at least 1")
        self.units = units
        self.columns = columns
        width = geometry.width
        self.down = Linear(width, units, bias=False)
        self.up = Linear(units, width, bias=False)
        self.mix = Conv1d(width, width, columns, groups=width, bias=False)
        self.step = Linear(width, geometry.heads)

    def reset_parameters(self, generator: torch.Generator) -> None:
        for layer in (self.down, self.up, self.mix, self.step):
            reset_linear(layer, generator)

    def observe(self, x: Tensor) -> Steps:
        x = x.to(self.down.weight.dtype)
        batch, length, _ = x.shape
        w = F.pad(self.up(self.down(x)).transpose(1, 2), (self.columns - 1, 0))
        w = F.silu(self.mix(w)).view(batch, self.geometry.heads, self.geometry.head_dim, length)
        w = w.transpose(2, 3)
        w = w * torch.rsqrt(w.square().sum(-1, keepdim=True) + 1e-6)
        return Steps(w, 2 * torch.sigmoid(self.step(x)).transpose(1, 2))

    def score(
        self, scores: Tensor, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor,
        observed: Any = None,
    ) -> Tensor:  # fmt: skip
        keys = len(positions_k)
        first = keys - len(positions_q)
        q = q.to(observed.w.dtype) * q.shape[-1] ** -0.5
        columns = []
        carried: Tensor | None = None  # later blocks' queries, taken back to the end of this block
        for start in range((keys - 1) // BLOCK * BLOCK, -1, -BLOCK):
            stop = min(start + BLOCK, keys)
            block = observed.block(k, start, stop)
            parts, moved = [], []
            if stop > first:
                own = max(start, first)
                local, through = block.inside(q[:, :, own - first : stop - first], own - start)
                parts.append(local)
                moved.append(through)
            if carried is not None:
                parts.append(carried @ block.ahead.transpose(-1, -2))
                moved.append(block.through(carried))
            column = torch.cat(parts, dim=2)
            columns.append(F.pad(column, (0, 0, len(positions_q) - column.shape[2], 0)))
            carried = torch.cat(moved, dim=2)
        return torch.cat(columns[::-1], dim=-1).to(scores.dtype)


class Steps:
    """What a layer's text says: directions w ``[B, H, N, d]`` and strengths beta ``[B, H, N]``."""

    def __init__(self, w: Tensor, beta: Tensor) -> None:
        self.w, self.beta = w, beta
        self._solved: dict[tuple[int, int], tuple[Tensor, _Block]] = {}

    def block(self, k: Tensor, start: int, stop: int) -> _Block:
        """Tokens ``start:stop``, solved once for all chunks of queries that meet the same keys.

        Kept outside training alone, where no chunk's graph hangs on it, and only while ``k`` is the
        same memory (held here, so that it cannot be another's).
        """
        found = self._solved.get((start, stop))
        if found is not None and found[0].data_ptr() == k.data_ptr() and not torch.is_grad_enabled():
            return found[1]
        part = slice(start, stop)
        made = _Block(k[:, :, part].to(self.w.dtype), self.w[:, :, part], self.beta[:, :, part])
        if stop - start == BLOCK and not torch.is_grad_enabled():
            self._solved[start, stop] = (k, made)
        return made


class _Block:
    """One block of c tokens: k, w ``[B, H, c, d]``, beta ``[B, H, c]``."""

    def __init__(self, k: Tensor, w: Tensor, beta: Tensor) -> None:
        self.k, self.w = k, w
        weighted = w * beta[..., None]
        # (I + strictly lower(beta w w^T))^-1 on beta w and on the strictly lower part of beta w k^T
        lower = (weighted @ w.transpose(-1, -2)).tril(-1)
        eye = torch.eye(w.shape[2], dtype=w.dtype, device=w.device)
        right = torch.cat([weighted, (weighted @ k.transpose(-1, -2)).tril(-1)], dim=-1)
        solved = torch.linalg.solve_triangular(lower + eye, right, upper=False, unitriangular=True)
        self.steps, self.on_keys = solved.split([w.shape[3], w.shape[2]], dim=-1)
        self.ahead = k - self.on_keys.transpose(-1, -2) @ w  # keys as the block's end sees them

    def inside(self, q: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        """Scores of the queries at rows ``offset``.. of the block, and the queries taken to its start."""
        against = (q @ self.w.transpose(-1, -2)).tril(offset)
        local = (q @ self.k.transpose(-1, -2)).tril(offset) - against @ self.on_keys
        return local, q - against @ self.steps

    def through(self, q: Tensor) -> Tensor:
        """Queries of later blocks, taken through the whole block."""
        against = q @ self.w.transpose(-1, -2)
        moved: Tensor = q - against @ self.steps
        return moved
