"""Root: ``logit_ij = q_i k_j / sqrt(d) - r_h sqrt(D)``, D = i - j. The power kernel of KERPLE at 1/2."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.catalogue import SchemeEntry
from kerple_eval.types import Geometry


class Root(Scheme):
    constraints: ClassVar = {"r": (0.01, None)}  # kept after every optimiser step; forward never clamps

    def __init__(self, geometry: Geometry, *, start: float = 1.0) -> None:
        super().__init__(geometry)
        self.start = start
        self.r = nn.Parameter(torch.ones(geometry.heads))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.r, 0.0, self.start, generator=generator)

    def kernel(self, distance: Tensor) -> Tensor:  # [n] -> [H, n], added to the scaled scores
        return -self.r.to(distance.dtype)[:, None] * distance.sqrt()


ENTRY = SchemeEntry(
    name="root",
    target="kerple_root:Root",
    year=2026,
    paper="this page; KERPLE, arXiv 2205.09921, Corollary 1a",
    kind="distance kernel",
    parameters="H",
    prefix_invariant=True,
)
