"""A kernel given as a formula: ``logit_ij = q_i k_j / sqrt(d) + formula(D)``, CPD by how it is written.

Source: the closure rules of Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS 2022, arXiv 2205.09921),
Section 3; ``kernels.algebra`` states them, ``kernels.parsing`` reads the formula:

    kernel: -r1*log(1+r2*D)                    what kerple-log is, to the bit
    kernel: -r1*D**r2 - r3*log(1+r4*D)         mentioned in Section 3, untested there
    kernel: r1*exp(-r2*D**2)                   PD, a Gaussian

D = i - j (tokens); each name r1, r2, ... is ``[H]``, one number per head, shared by all layers: K H
parameters for K names. Where a name occurs decides its interval and its initial draw, as in the release
(``kernels.parameters``). The bias joins *after* the 1/sqrt(d) scaling, as in kerple-log.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.kernels import ClosureError, parse_kernel
from kerple_eval.types import Geometry, UserError


class FormulaKernel(Scheme):
    def __init__(self, geometry: Geometry, *, formula: str) -> None:
        super().__init__(geometry)
        try:
            self.expression = parse_kernel(formula)
        except ClosureError as error:
            raise UserError(f"kernel: {error}") from None
        self.ranges = self.expression.parameters
        self.constraints = {name: (r.lowest, r.highest) for name, r in self.ranges.items()}
        for name in self.ranges:
            self.register_parameter(name, nn.Parameter(torch.ones(geometry.heads)))

    def reset_parameters(self, generator: torch.Generator) -> None:
        for name, r in self.ranges.items():
            nn.init.uniform_(self.get_parameter(name), r.start, r.stop, generator=generator)

    def kernel(self, distance: Tensor) -> Tensor:
        values = {name: self.get_parameter(name).to(distance.dtype)[:, None] for name in self.ranges}
        return self.expression(distance, values).expand(self.geometry.heads, len(distance))
