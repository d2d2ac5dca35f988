"""LongRoPE: each frequency divided by its own number, one set for short and one for long windows.

Source: Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens" (arXiv 2402.13753),
Eq. (3); transformers' ``modeling_rope_utils.py`` ("longrope").

``theta_t / lambda_t`` with lambda = ``long`` in windows of more than L tokens, else ``short``; cos and sin
times ``sqrt(1 + ln s / ln L)``. ``original`` L (tokens) is the trained length unless given, ``factor`` s. The
lists are searched for each model: d/2 numbers with slashes between, ``long=1/1.2/2.5/8``. Without ``long``
it is the NTK-aware one, ``lambda_t = s^(2 t / (d - 2))``, where the paper's search starts from; without
``short`` all ones. A loss depends on how long its window is: not prefix-invariant. ``base`` and
``fraction`` as in rope. Usually applied to a trained model; it can also be trained. No parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import Geometry, UserError


class RopeLongrope(Rotary):
    prefix_invariant = False

    def __init__(
        self, geometry: Geometry, *, factor: float = 8.0, original: int = 0, long: str = "", short: str = "",
        attention_factor: float = 0.0, base: float = 10000.0, fraction: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(geometry, "rope-longrope", base, fraction)
        self.factor, self.original = self.stretched(factor, original)
        if self.original < 2:
            raise UserError(f"rope-longrope: original={self.original} must be at least 2 tokens")
        if not 0 <= attention_factor < math.inf:
            raise UserError(f"rope-longrope: attention_factor={attention_factor} must be positive")
        pairs = self.turned // 2
        searched = [self.factor ** (t / max(1, pairs - 1)) for t in range(pairs)]
        self.long = self._numbers("long", long) if long else searched
        self.short = self._numbers("short", short) if short else [1.0] * pairs
        stretch = math.sqrt(1 + math.log(self.factor) / math.log(self.original))
        self.attention_factor = attention_factor or stretch

    def _numbers(self, name: str, text: str) -> list[float]:
        try:
            numbers = [float(part) for part in text.split("/")]
        except ValueError:
            raise UserError(f"rope-longrope: {name}={text}: expected numbers with slashes between") from None
        if len(numbers) != self.turned // 2:
            raise UserError(
                f"rope-longrope: {name} has {len(numbers)} numbers, the model {self.turned // 2} frequencies"
            )
        if not all(0 < number < math.inf for number in numbers):
            raise UserError(f"rope-longrope: {name}={text}: every number must be positive")
        return numbers

    def frequencies(self, length: int, device: torch.device) -> Tensor:
        divisors = self.long if length > self.original else self.short
        return super().frequencies(length, device) / torch.tensor(
            divisors, dtype=torch.float64, device=device
        )
