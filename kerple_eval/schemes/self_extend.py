"""SelfExtend: neighbours at their distance, farther keys at positions grouped by G.

Source: Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning" (ICML 2024,
arXiv 2401.01325), Section 3.2; code datamllab/LongLM, ``llama_self_extend_patch.py``.

For D = i - j < w positions stay; for D >= w they become i' = i // G + w - w // G and j' = j // G, so that
beyond w the distance grows at one G-th of the pace. ``window`` w (tokens) is half the trained
length unless given, ``group`` G is 8. A modifier of relative schemes (rope, kernels of distance), for trained
models. No parameters. Depends on i and j through the floors, not on later tokens. The largest
distance is w + (L - w) / G: within the trained length up to L = (train - w) G + w.
"""

from __future__ import annotations

from torch import Tensor

from kerple_eval.schemes.base import Move, Scheme
from kerple_eval.types import Geometry, UserError


class SelfExtend(Scheme):
    def __init__(self, geometry: Geometry, *, window: int = 0, group: int = 8) -> None:
        super().__init__(geometry)
        if window < 0 or group < 1:
            raise UserError(f"self-extend: window={window} and group={group} must be at least 1")
        self.near = window or max(1, geometry.train_length // 2)
        self.group = group

    def remap(self, positions_q: Tensor, positions_k: Tensor) -> list[Move]:
        far = positions_q[:, None] - positions_k >= self.near
        shift = self.near - self.near // self.group
        return [(far, positions_q // self.group + shift, positions_k // self.group)]
