"""The MLP's activations and the norms a decoder may be configured with.

Activations, x ``[..., n]`` -> ``[..., n]`` (geglu: ``[..., 2 n]`` -> ``[..., n]``):

* gelu       ``x Phi(x)``, Phi the normal distribution function (erf)
* gelu-tanh  ``x/2 (1 + tanh(0.79788456 x (1 + 0.044715 x^2)))``, GPT-NeoX's fused form
* geglu      ``u gelu(g)``, u and g the first and second half of the input
* relu, softsign ``x / (1 + |x|)``, swish ``x sigmoid(x)``, mish ``x tanh(log(1 + e^x))``

Source: EleutherAI/gpt-neox, ``megatron/model/activations.py`` (``bias_gelu``, ``GEGLU``, ...);
Hendrycks and Gimpel, arXiv 1606.08415 (GELU); Shazeer, arXiv 2002.05202 (GEGLU).

Norms of the hidden size W: ``layernorm``, and ``rmsnorm`` as GPT-NeoX writes it,
``w x / (rms(x) + epsilon)`` with epsilon outside the root (``megatron/model/norms.py``; Zhang and
Sennrich, arXiv 1910.07467).

What is written out here is computed in float32 at least and rounded to x's dtype once, at the end: a float16
square overflows from 256 on. torch's own functions do the same inside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gelu_tanh(x: Tensor) -> Tensor:
    wide = _wide(x)
    return (0.5 * wide * (1 + torch.tanh(0.79788456 * wide * (1 + 0.044715 * wide * wide)))).to(x.dtype)


def geglu(x: Tensor) -> Tensor:
    u, gate = x.chunk(2, dim=-1)
    return u * F.gelu(gate)


#: name -> (function, input width over output width)
ACTIVATION_FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "gelu": (F.gelu, 1),
    "gelu-tanh": (gelu_tanh, 1),
    "geglu": (geglu, 2),
    "relu": (F.relu, 1),
    "softsign": (F.softsign, 1),
    "swish": (F.silu, 1),
    "mish": (F.mish, 1),
}


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x ``[..., W]`` -> ``[..., W]`` in x's dtype."""
        wide = _wide(x)
        rms = wide.square().mean(dim=-1, keepdim=True).sqrt()
        return (self.weight * (wide / (rms + self.eps))).to(x.dtype)


NORM_LAYERS: dict[str, Callable[[int, float], nn.Module]] = {
    "layernorm": lambda width, eps: nn.LayerNorm(width, eps=eps),
    "rmsnorm": RMSNorm,
}
