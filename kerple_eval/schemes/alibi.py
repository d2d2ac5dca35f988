"""ALiBi: ``logit_ij = q_i k_j / sqrt(d) - m_h D``, slopes fixed.

Source: Press, Smith, Lewis, "Train Short, Test Long" (ICLR 2022, arXiv 2108.12409), Section 3;
slopes from the authors' ``get_slopes`` (ofirpress/attention_with_linear_biases,
``fairseq/models/transformer.py``, line 742).

D = i - j (tokens), h = 1..H. For H a power of two, ``m_h = 2^(-8 h / H)``. Otherwise, with P the
largest power of two below H: the P slopes for P heads, then every other slope for 2 P heads (first,
third, ...) until H are there. No parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.slopes import slopes


class Alibi(Scheme):
    def kernel(self, distance: Tensor) -> Tensor:
        m = torch.tensor(slopes(self.geometry.heads), dtype=distance.dtype, device=distance.device)
        return -m[:, None] * distance

    def inline(self, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        m = torch.tensor(slopes(self.geometry.heads), device=device)
        return lambda distance, head: -m[head] * distance
