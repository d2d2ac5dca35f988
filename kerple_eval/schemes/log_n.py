"""Log-n scaling: ``logit_ij = max(1, ln(i + 1) / ln(L)) q_i k_j / sqrt(d)``, L the trained length.

Source: Su, "The Scale of Attention from the Invariance of Entropy" (kexue.fm/archives/8823) and
bojone/rerope, ``rerope_patch.py``; Chiang and Cholak, "Overcoming a Theoretical Limitation of
Self-Attention" (arXiv 2202.12172), Section 5.

A modifier, applied to a trained model: up to position L - 1 nothing changes, beyond it attention is
sharpened against the growing number of keys. ``original`` (tokens) is L where not the trained length. No
parameters; i + 1 is the row's own count, so losses do not depend on what follows.
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

    def row_scale(self, positions_q: Tensor) -> Tensor:
        counts = positions_q.to(torch.float64) + 1
        return (torch.log(counts) / math.log(self.original)).clamp(min=1)[None]
