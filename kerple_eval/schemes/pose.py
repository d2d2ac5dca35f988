"""PoSE: in training, a sequence is cut in two and the second part's positions skip ahead at random.

Source: Zhu et al., "PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training"
(ICLR 2024, arXiv 2309.10400), Section 3.2; code dwzhu-pku/PoSE, ``src/train_pose.py``
(``train_preprocess_function_pose``), commit 43b43b3.

Before each training step r ~ U{1 .. (N + 1) // 2} and u ~ U{0 .. ``longest`` - N} are drawn; of N tokens
the first r have the positions 0 .. r - 1, the others r + u .. N - 1 + u. So a model trained on N tokens
meets every distance up to ``longest`` (tokens, 8 times the trained length unless given). One draw serves
the step's batch, and the text stays in one piece (the code draws for each sequence, and cuts a part of its
text out too). Evaluation has the positions 0 .. n - 1. Usually applied to a trained model, with
interpolated frequencies, and trained on: ``--extend linear,factor=4,pose=2048``. A modifier for training
alone. No parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kerple_eval.schemes.augmented import Augmenting
from kerple_eval.types import Geometry


class Pose(Augmenting):
    def __init__(self, geometry: Geometry, *, longest: int = 0) -> None:
        super().__init__(geometry, "pose", longest)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        cut = int(torch.randint(1, (count + 1) // 2 + 1, (), generator=generator))
        skip = int(torch.randint(0, self.longest - count + 1, (), generator=generator))
        positions = torch.arange(count)
        return positions + skip * (positions >= cut)
