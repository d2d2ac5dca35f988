"""copy[:cue=8,answer=8,ids=all]: random ids, a part of which is repeated at the end.

    N = L + 1 - cue - answer,  x_0 .. x_{N-1} uniform over the ids, independent
    s = round(depth (N - cue - answer))
    document = x_0 .. x_{N-1}  x_s .. x_{s+cue-1}  x_{s+cue} .. x_{s+cue+answer-1}

The last ``answer`` tokens are the answer. After Jelassi et al. 2024 (Repeat After Me, arXiv 2402.01032,
n-gram lookup: a long string, a piece of it as query, what followed it as answer). The cue
occurs once: strings where it recurs are drawn anew. ``ids`` are the model's whole vocabulary or a range,
``ids=97-122``. A guess is right with probability ``|ids|^-answer``.
"""

from __future__ import annotations

import numpy as np

from kerple_eval.data.synthetic.base import (
    Generator,
    Ids,
    SyntheticDocument,
    parse_ids,
    too_short,
)
from kerple_eval.data.tokenizer import ModelTokens
from kerple_eval.types import UserError

TRIES = 100


class Copy(Generator):
    of_ids = True

    def __init__(self, *, cue: int = 8, answer: int = 8, ids: str = "all") -> None:
        for name, value in (("cue", cue), ("answer", answer)):
            if value < 1:
                raise UserError(f"copy: {name}={value} must be at least 1")
        self.cue, self.answer, self.ids = cue, answer, ids

    def make(
        self, model: ModelTokens, length: int, depth: float, rng: np.random.Generator
    ) -> SyntheticDocument:
        first, count = parse_ids(self.ids, model.vocabulary, "copy")
        markers = len(model.before)
        size = self.cue + self.answer
        n = length + 1 - markers - size
        if n < size:
            raise too_short("copy", length, 2 * size + markers - 1)
        at = round(depth * (n - size))
        for _ in range(TRIES):
            x: Ids = first + rng.integers(count, size=n)
            cue = x[at : at + self.cue]
            whole = np.concatenate([x, cue])  # the cue occurs twice: where it was drawn, and at the end
            if _occurrences(whole, cue) == 2:
                parts = [model.before, x, x[at : at + size]]
                return SyntheticDocument(
                    np.concatenate([np.asarray(p, dtype=np.int64) for p in parts]), self.answer
                )
        raise UserError(
            f"copy: cue={self.cue} of {count} ids occurs more than once in {n} tokens at length {length} "
            f"({TRIES} draws); use a longer cue"
        )


def _occurrences(x: Ids, piece: Ids) -> int:
    found = np.ones(len(x) - len(piece) + 1, dtype=bool)
    for i, value in enumerate(piece):
        found &= x[i : len(x) - len(piece) + 1 + i] == value
    return int(found.sum())
