"""A learned sink: one logit a head that stands for no key, ``w_ij = e^(z_ij) / (e^s + sum_l e^(z_il))``.

Source: OpenAI, gpt-oss (model card, arXiv 2508.10925), transformers' ``modeling_gpt_oss.py``; with s fixed
at 0 it is Miller's "Attention Is Off By One" (2023).

A modifier: the weights of a row add up to less than 1, so that a head need not put what is left on the
first token. s ``[H]`` starts at ``start``, 0 unless given; each layer has its own: H a layer. Losses do
not depend on later tokens.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


class Sink(Scheme):
    per_layer: ClassVar[bool] = True

    def __init__(self, geometry: Geometry, *, start: float = 0.0) -> None:
        super().__init__(geometry)
        if not math.isfinite(start):
            raise UserError(f"sink: start={start} must be finite")
        self.start = start
        self.logit = nn.Parameter(torch.zeros(geometry.heads))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.logit, self.start)

    def sink(self) -> Tensor:
        return self.logit
