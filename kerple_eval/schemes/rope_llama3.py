"""Llama 3's RoPE: long wavelengths interpolated, short ones kept, smooth between.

Source: "The Llama 3 Herd of Models" (arXiv 2407.21783); meta-llama/llama-models,
``models/llama3/reference_impl/model.py`` (``apply_scaling``); transformers' ``modeling_rope_utils.py``
("llama3").

With the wavelength ``w = 2 pi / theta`` and the original length L (``original``, tokens; the trained length
unless given): theta where w < L / high; theta / s where w > L / low; else
``(1 - u) theta / s + u theta`` with ``u = (L / w - low) / (high - low)``. ``factor`` s, ``low`` 1,
``high`` 4. Losses do not depend on later tokens. ``base`` and ``fraction`` as in rope. Usually applied to a
trained model; it can also be trained. No parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kerple_eval.schemes.rotary import Rotary
from kerple_eval.types import Geometry, UserError


class RopeLlama3(Rotary):
    def __init__(
        self, geometry: Geometry, *, factor: float = 8.0, original: int = 0, low: float = 1.0,
        high: float = 4.0, base: float = 10000.0, fraction: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(geometry, "rope-llama3", base, fraction)
        self.factor, self.original = self.stretched(factor, original)
        if not 0 < low < high < math.inf:
            raise UserError(f"rope-llama3: high={high} must be finite and above low={low}, low above 0")
        self.low, self.high = low, high

    def frequencies(self, length: int, device: torch.device) -> Tensor:
        theta = super().frequencies(length, device)
        turns = self.original * theta / (2 * math.pi)  # L / w
        smooth = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - smooth) * theta / self.factor + smooth * theta
