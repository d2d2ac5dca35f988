"""What DAPE and DAPE-V2 share: the static bias that they adapt, and the rows they work on at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.kernels import log_kernel
from kerple_eval.schemes.slopes import slopes
from kerple_eval.support.registry import unknown
from kerple_eval.types import Geometry, UserError

STATIC = ("kerple-log", "alibi", "none")
ELEMENTS = 1 << 24  # of the hidden layer formed at once


class Adaptive(Scheme):
    """``logit = x + b + f(x, b)``: x the scaled score, b a bias of distance, f a network per layer."""

    per_layer: ClassVar[bool] = True
    constraints: Mapping[str, tuple[float | None, float | None]] = {
        "r1": (0.01, None),
        "r2": (0.01, None),
    }

    def __init__(self, geometry: Geometry, name: str, static: str, units: int) -> None:
        super().__init__(geometry)
        if static not in STATIC:
            raise unknown(f"static bias of {name}", static, STATIC)
        if units < 1:
            raise UserError(f"{name}: units={units} must be at least 1")
        self.static = static
        self.units = units
        if static == "kerple-log":
            self.r1 = nn.Parameter(torch.ones(geometry.heads))
            self.r2 = nn.Parameter(torch.ones(geometry.heads))
        else:
            self.constraints = {}  # no parameter of the bias

    def reset_parameters(self, generator: torch.Generator) -> None:
        if self.static == "kerple-log":
            nn.init.uniform_(self.r1, 0.0, 2.0, generator=generator)
            nn.init.uniform_(self.r2, 0.0, 1.0, generator=generator)

    @abstractmethod
    def adapt(self, both: Tensor) -> Tensor:
        """f of scores and bias ``[B, 2 H, Q, K]``, zero at keys after the query -> ``[B, H, Q, K]``."""

    def score(
        self, scores: Tensor, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor,
        observed: Any = None,
    ) -> Tensor:  # fmt: skip
        batch, heads, _, keys = scores.shape
        rows = max(1, ELEMENTS // (batch * keys * max(2 * heads, self.units)))
        parts = []
        for some, part in zip(torch.split(scores, rows, 2), torch.split(positions_q, rows), strict=True):
            distance = part[:, None] - positions_k
            bias = self._bias(distance.clamp(min=0).to(scores.dtype)).expand(batch, -1, -1, -1)
            both = torch.cat([some, bias], dim=1).masked_fill(distance < 0, 0.0)
            parts.append(some + bias + self.adapt(both))
        return torch.cat(parts, dim=2)

    def _bias(self, distance: Tensor) -> Tensor:
        """``[Q, K]`` -> ``[H, Q, K]``."""
        heads = self.geometry.heads
        if self.static == "kerple-log":
            r1, r2 = (r.to(distance.dtype)[:, None, None] for r in (self.r1, self.r2))
            return log_kernel(distance, r1, r2)
        if self.static == "alibi":
            m = torch.tensor(slopes(heads), dtype=distance.dtype, device=distance.device)
            return -m[:, None, None] * distance
        return distance.new_zeros(heads, *distance.shape)
