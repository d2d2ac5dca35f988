"""Gated attention: each head's output times a sigmoid gate read from the token, ``y_i * sigmoid(x_i W)``.

Source: Qiu et al., "Gated Attention for Large Language Models: Non-linearity, Sparsity, and
Attention-Sink-Free" (NeurIPS 2025, arXiv 2505.06708), Eq. (5) at G1; code qiuzh20/gated_attention,
``modeling_qwen3.py``, commit df42212 (Qwen3-Next has it).

x ``[W]`` are the layer's normed inputs, y ``[H, d]`` the output of attention before its projection. ``by`` is
``element`` (one gate a component, W W a layer) or ``head`` (one a head, W H a layer). The weights start
N(0, s^2), s = sqrt(2 / (5 W)), as the decoder's do; no bias. A modifier; each layer has its own. It gives
nothing a position: what it does for length is to rid attention of its sink on the first token.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.networks import Linear
from kerple_eval.types import Geometry, UserError


class Gate(Scheme):
    per_layer: ClassVar[bool] = True

    def __init__(self, geometry: Geometry, *, by: str = "element") -> None:
        super().__init__(geometry)
        if by not in ("element", "head"):
            raise UserError(f"gate: by={by}: expected element or head")
        each = geometry.head_dim if by == "element" else 1
        self.linear = Linear(geometry.width, geometry.heads * each, bias=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        small = math.sqrt(2 / (5 * self.geometry.width))
        nn.init.normal_(self.linear.weight, 0.0, small, generator=generator)

    def output_gate(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        gates = torch.sigmoid(self.linear(x.to(self.linear.weight.dtype)))
        return gates.view(batch, length, self.geometry.heads, -1).transpose(1, 2)
