"""Random positions: in training, a sequence of N tokens takes N of many more positions, in order.

Source: Ruoss et al., "Randomized Positional Encodings Boost Length Generalization of Transformers" (ACL
2023, arXiv 2305.16843), Section 3; code google-deepmind/randomized_positional_encodings,
``models/positional_encodings.py`` (``noisy_fixed_positional_encodings``), commit 57bc5d0.

Before each training step N of the positions 0 .. ``longest`` - 1 are drawn without replacement and sorted;
all sequences and layers of the step have them, as in that code. Distances up to ``longest`` (tokens, 8
times the trained length unless given) are so met in training. Evaluation has the positions 0 .. n - 1, so
that a loss is a function of its text; the released code draws there too. A modifier of schemes that are
functions of positions, absolute ones included, for training alone. No parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kerple_eval.schemes.augmented import Augmenting
from kerple_eval.types import Geometry


class RandomPositions(Augmenting):
    def __init__(self, geometry: Geometry, *, longest: int = 0) -> None:
        super().__init__(geometry, "random-positions", longest)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randperm(self.longest, generator=generator)[:count].sort().values
