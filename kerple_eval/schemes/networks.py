"""Layers that are left unset until someone sets them, and torch's usual initial values from a generator.

torch's own layers draw values when they are built, from the global generator and, on the meta device,
through an import that takes longer than torch's (torch 2.13: ``normal_`` on meta loads torch._dynamo). Here
``reset_parameters`` of the decoder or scheme, or a checkpoint, gives the values.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Nothing: see the module."""


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing: see the module."""


class Conv1d(nn.Conv1d):
    def reset_parameters(self) -> None:
        """Nothing: see the module."""


class Conv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Nothing: see the module."""


def reset_linear(layer: nn.Linear | nn.Conv1d | nn.Conv2d, generator: torch.Generator) -> None:
    """torch's own default, U(-1/sqrt(fan in), 1/sqrt(fan in)) for weights and biases."""
    fan_in = layer.weight[0].numel()
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
