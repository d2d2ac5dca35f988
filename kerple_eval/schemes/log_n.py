"""Log-n scaling: ``logit_ij = max(1, ln(n) / ln(L)) q_i k_j / sqrt(d)``, L the trained length.

Source: Su, "The Scale of Attention from the Invariance of Entropy" (kexue.fm/archives/8823) and
bojone/rerope, ``rerope_patch.py``; Chiang and Cholak, "Overcoming a Theoretical Limitation of
Self-Attention" (arXiv 2202.12172), Section 5.

A modifier, applied to a trained model: up to position L - 1 nothing changes, beyond it attention is
sharpened against the growing number of keys. ``original`` (tokens) is L where not the trained length. No
parameters; n, the number of keys that query i sees, is i + 1, or fewer where a window or another mask is
applied too. It is the row's own count, so losses do not depend on later tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry, UserError


class LogN(Scheme):
    def __init__(self, geometry: Geometry, *, original: int = 0) -> None:
        super().__init__(geometry)
        self.original = original or geometry.train_length
        if self.original < 2:
            raise UserError(f"log-n: original={self.original} must be at least 2 tokens")

    def row_scale(self, positions_q: Tensor, keys: Tensor) -> Tensor:
        return (torch.log(keys.to(torch.float64)) / math.log(self.original)).clamp(min=1)[None]
