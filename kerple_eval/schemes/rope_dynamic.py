"""Dynamic NTK RoPE: the base grows with the window, ``base' = base (s n / L - (s - 1))^(d / (d - 2))``.

Source: emozilla, "Dynamically Scaled RoPE" (2023); Peng et al., "YaRN" (arXiv 2309.00071), Section 3.3;
transformers' ``modeling_rope_utils.py`` ("dynamic").

n is the window's length in tokens or the original length L, whichever is more: up to L plain RoPE.
``original`` L is the trained length unless given, ``factor`` s is 1 (the base follows n / L). A loss
depends on how long its window is, whatever its own context: not prefix-invariant. (The published code
also keeps the longest length it has met; here each window has its own length.) d counts the components
that turn, at least 4. ``base`` and ``fraction`` as in rope. No parameters.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import Geometry, UserError


class RopeDynamic(Rotary):
    needs_factor: ClassVar[bool] = False
    prefix_invariant = False

    def __init__(
        self, geometry: Geometry, *, factor: float = 1.0, original: int = 0, base: float = 10000.0,
        fraction: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(geometry, "rope-dynamic", base, fraction)
        self.factor, self.original = self.stretched(factor, original)
        if self.turned < 4:
            raise UserError(
                f"rope-dynamic: {self.turned} turned components; the exponent d/(d-2) needs 4 or more"
            )

    def frequencies(self, length: int, device: torch.device) -> Tensor:
        longest = max(length, self.original)
        growth = self.factor * longest / self.original - (self.factor - 1)
        theta = super().frequencies(length, device)
        t = torch.arange(0, self.turned, 2, dtype=torch.float64, device=device)
        return theta * growth ** (-t / (self.turned - 2))
