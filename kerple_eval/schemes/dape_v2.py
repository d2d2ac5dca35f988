"""DAPE-V2: as DAPE, but the network also sees the neighbouring keys.

Source: Zheng et al., "DAPE V2: Process Attention Score as Feature Map for Length Extrapolation" (arXiv
2410.04798), Section 3; code chuanyang-Zheng/DAPE, ``megatron/model/positional_embeddings.py`` (``*_DAPEV2``).

    logit = x + b + conv(LeakyReLU(conv(tril [x ; b])))

Convolutions 2 H -> M -> H of 1 x C along the keys of a row, C = 3 ``columns`` (odd), zeros outside; keys
after the query are zeros (tril), without which a row would see its future. ``static`` b and M as in dape.
Each layer has its own: 2 H + 2 H M C + M + M H C + H a layer.

In the released code the second convolution finds the first one's bias at the keys right after the query,
and nothing there in the window's last C // 2 rows, whose losses thus change when text follows. Here every
row is treated as one that others follow, so losses do not depend on later tokens; only those last rows
differ from the release.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kerple_eval.schemes.adaptive import Adaptive
from kerple_eval.schemes.networks import Conv2d, reset_linear
from kerple_eval.types import Geometry, UserError


class DapeV2(Adaptive):
    def __init__(
        self, geometry: Geometry, *, static: str = "kerple-log", units: int = 32, columns: int = 3
    ) -> None:
        super().__init__(geometry, "dape-v2", static, units)
        if columns < 1 or columns % 2 == 0:
            raise UserError(f"dape-v2: columns={columns} must be odd")
        self.columns = columns
        self.into = Conv2d(2 * geometry.heads, units, (1, columns))
        self.out = Conv2d(units, geometry.heads, (1, columns))

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        for layer in (self.into, self.out):
            reset_linear(layer, generator)

    def adapt(self, both: Tensor) -> Tensor:
        side = self.columns // 2
        padded = F.pad(both.to(self.into.weight.dtype), (side, 2 * side))
        hidden = F.leaky_relu(self.into(padded))  # keys 0 .. K - 1 + side
        out: Tensor = self.out(F.pad(hidden, (side, 0)))
        return out.to(both.dtype)
