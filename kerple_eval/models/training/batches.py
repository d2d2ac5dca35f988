"""The order of training text: packed documents cut into sequences, a pure function of the seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kerple_eval.models.training.corpus import Corpus
from kerple_eval.types import UserError


class PackedBatches:
    """Batches ``[batch, L + 1]`` as a pure function of (seed, step)."""

    def __init__(self, corpus: Corpus, length: int, batch: int, seed: int) -> None:
        order = np.random.default_rng([seed, 0]).permutation(len(corpus.train))
        end = np.array([corpus.end_of_document], dtype=np.int64)
        parts = [part for i in order for part in (corpus.train[i].ids, end)]
        self.stream = np.concatenate(parts).astype(np.int32)
        self.length, self.batch, self.seed = length, batch, seed
        self.samples = (len(self.stream) - length) // length  # whatever the epoch's offset
        if self.samples < 1:
            raise UserError(
                f"the training text has {len(self.stream)} tokens; "
                f"length {length} needs at least {2 * length}"
            )
        self._epoch = -1

    def __call__(self, step: int) -> NDArray[np.int64]:
        rows = [self._sample(step * self.batch + b) for b in range(self.batch)]
        return np.stack(rows).astype(np.int64)

    def _sample(self, number: int) -> NDArray[np.int32]:
        epoch, within = divmod(number, self.samples)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, 1, epoch])
            self._offset = int(rng.integers(self.length))
            self._order = rng.permutation(self.samples)
            self._epoch = epoch
        start = self._offset + int(self._order[within]) * self.length
        return self.stream[start : start + self.length + 1]
