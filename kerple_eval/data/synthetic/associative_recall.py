"""associative-recall[:pairs=8,ids=all]: keys with values among noise, one key asked for at the end.

    ids in use: the first half K are keys, the rest V are values
    keys k_0 .. k_{P-1} distinct in K, values v_i uniform over V, noise uniform over V
    document = noise with (k_i, v_i) as neighbours, then k_0; the answer is v_0, the last token

k_0 v_0 stands at ``s = round(depth (N - 2))`` of the N = L - 1 tokens before the question (L - 2 behind a
first-token marker), the other pairs at places that are free, uniformly. Keys occur in pairs alone, so the
answer is the one token that ever followed k_0. After Arora et al. 2023 (Zoology, arXiv 2312.04927,
multi-query associative recall: keys of one half of the vocabulary, values of the other), with one query
and its distance fixed by depth. Guessing finds 1 of |V|.
"""

from __future__ import annotations

from math import comb

import numpy as np

from kerple_eval.data.synthetic.base import Generator, MadeDocument, ModelTokens, parse_ids, too_short
from kerple_eval.types import UserError


class AssociativeRecall(Generator):
    of_ids = True

    def __init__(self, *, pairs: int = 8, ids: str = "all") -> None:
        if pairs < 1:
            raise UserError(f"associative-recall: pairs={pairs} must be at least 1")
        self.pairs, self.ids = pairs, ids

    def make(self, reader: ModelTokens, length: int, depth: float, rng: np.random.Generator) -> MadeDocument:
        first, count = parse_ids(self.ids, reader.vocabulary, "associative-recall")
        keys = count // 2
        if self.pairs > keys:
            raise UserError(f"associative-recall: pairs={self.pairs}, but {count} ids give {keys} keys")
        lead = 0 if reader.bos is None else 1
        n = length - 1 - lead
        if n < 2 * self.pairs + 2:
            raise too_short("associative-recall", length, 2 * self.pairs + 3 + lead)
        asked = first + rng.permutation(keys)[: self.pairs]
        values = first + keys + rng.integers(count - keys, size=self.pairs)
        x = first + keys + rng.integers(count - keys, size=n)
        for key, value, place in zip(asked, values, self._places(n, depth, rng), strict=True):
            x[place : place + 2] = key, value
        parts = [[] if reader.bos is None else [reader.bos], x, [asked[0], values[0]]]
        return MadeDocument(np.concatenate([np.asarray(p, dtype=np.int64) for p in parts]), 1)

    def _places(self, n: int, depth: float, rng: np.random.Generator) -> list[int]:
        """Where pairs begin: the asked one by depth, then the others, none over another.

        The others are cut out of the n - 2 P tokens of noise: on each side of the asked pair as many as
        fall there, so that every layout of them is as likely as any.
        """
        at = round(depth * (n - 2))
        left, right = at, n - 2 - at  # tokens on either side
        others = self.pairs - 1
        layouts = [_ways(left, i) * _ways(right, others - i) for i in range(others + 1)]
        total = sum(layouts)  # not 0: at most one token a side is left over, and n has two to spare
        weights = [ways / total for ways in layouts]
        before = int(rng.choice(others + 1, p=weights))
        return [at, *_lay(0, left, before, rng), *_lay(at + 2, right, others - before, rng)]


def _ways(tokens: int, pairs: int) -> int:
    """In how many ways ``pairs`` pairs of neighbours lie among ``tokens``: C(tokens - pairs, pairs)."""
    return comb(tokens - pairs, pairs) if tokens >= 2 * pairs else 0


def _lay(start: int, tokens: int, pairs: int, rng: np.random.Generator) -> list[int]:
    """Places of ``pairs`` pairs among ``tokens`` from ``start`` on, uniformly over all layouts."""
    slots = np.sort(rng.permutation(tokens - pairs)[:pairs])
    return [start + int(slot) + i for i, slot in enumerate(slots)]
