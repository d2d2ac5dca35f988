"""Stick-breaking attention: the nearest key takes its share of a stick, the next of what is left, and so on.

Source: Tan et al., "Scaling Stick-Breaking Attention: An Efficient Implementation and In-depth Study" (ICLR
2025, arXiv 2410.17980), Eq. (1)-(2); code shawntan/stickbreaking-attention; naive form in
flash-linear-attention, ``fla/ops/stickbreaking_attn/naive.py``.

    w_ij = sigmoid(z_ij) prod_{j < l < i} (1 - sigmoid(z_il)),   z_ij = q_i k_j / sqrt(d),   j < i

In place of softmax. A query does not attend to itself, and what is left of the stick goes to no key; position
enters through the order alone, nearer keys first. No parameters. Losses do not depend on later tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kerple_eval.schemes.base import Scheme


class StickBreaking(Scheme):
    def attend(self, scores: Tensor, seen: Tensor, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        before = seen & (positions_k < positions_q[:, None])
        kept = F.logsigmoid(-scores).masked_fill(~before, 0.0)  # ln(1 - share) of each key
        nearer = F.pad(kept.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1))
        return (F.logsigmoid(scores) + nearer).exp().masked_fill(~before, 0.0)
