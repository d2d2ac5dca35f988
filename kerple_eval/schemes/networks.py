"""Initial values of the small networks some schemes learn, drawn from their own generator."""

from __future__ import annotations

import math

import torch
from torch import nn


def reset_linear(layer: nn.Linear | nn.Conv1d | nn.Conv2d, generator: torch.Generator) -> None:
    """torch's own default, U(-1/sqrt(fan in), 1/sqrt(fan in)) for weights and biases."""
    fan_in = layer.weight[0].numel()
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
