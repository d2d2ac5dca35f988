"""Temperature by position, Llama 4's: scores grow with the logarithm of the position, in steps.

    logit_ij = (1 + scale ln(1 + floor((i + 1) / floor))) q_i k_j / sqrt(d)

Source: Meta, Llama 4 (``attn_temperature_tuning``), transformers' ``modeling_llama4.py``; the thought is
that of Nakanishi, "Scalable-Softmax Is Superior for Attention" (arXiv 2501.19399).

A modifier: the query's scores grow by steps of ``floor`` tokens, so that a softmax over more keys is no
flatter. ``floor`` is the trained length unless given (Llama 4: 8192), ``scale`` 0.1, as there. Llama 4 has
it in the layers without positions alone: ``layers: (rope)*3 (nope,temperature)``. No parameters;
prefix-invariant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


class Temperature(Scheme):
    def __init__(self, geometry: Geometry, *, floor: int = 0, scale: float = 0.1) -> None:
        super().__init__(geometry)
        if floor < 0 or not 0 < scale < math.inf:
            raise UserError(
                f"temperature: floor={floor} must be at least 1 token (or 0: the trained length) "
                f"and scale={scale} positive"
            )
        self.floor = floor or geometry.train_length
        self.scale = scale

    def row_scale(self, positions_q: Tensor, keys: Tensor) -> Tensor:
        steps = torch.floor((positions_q.double() + 1) / self.floor)
        return (torch.log1p(steps) * self.scale + 1)[None]
