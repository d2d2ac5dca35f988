"""associative-recall[:pairs=8,ids=all]: keys with values among noise, one key asked for at the end.

    ids in use: the first half K are keys, the rest V are values
    keys k_0 .. k_{P-1} distinct in K, values v_i uniform over V, noise uniform over V
    document = noise with (k_i, v_i) as neighbours, then k_0; the answer is v_0, the last token

k_0 v_0 stands at ``s = round(depth (N - 2))`` of the N = L - 1 tokens before the question (L - 2 behind a
first-token marker), the other pairs at free positions, drawn uniformly. Keys occur in pairs alone, so the
answer is the one token that ever followed k_0. After Arora et al. 2023 (Zoology, arXiv 2312.04927,
multi-query associative recall: keys of one half of the vocabulary, values of the other), with one query
and its distance fixed by depth. A guess is right with probability 1 / |V|.
"""

from __future__ import annotations

from math import comb

import numpy as np

from kerple_eval.data.synthetic.base import Generator, SyntheticDocument, parse_ids, too_short
from kerple_eval.data.tokenizer import ModelTokens
from kerple_eval.types import UserError


class AssociativeRecall(Generator):
    of_ids = True

    def __init__(self, *, pairs: int = 8, ids: str = "all") -> None:
        if pairs < 1:
            raise UserError(f"associative-recall: pairs={pairs} must be at least 1")
        self.pairs, self.ids = pairs, ids

    def make(
        self, model: ModelTokens, length: int, depth: float, rng: np.random.Generator
    ) -> SyntheticDocument:
        first, count = parse_ids(self.ids, model.vocabulary, "associative-recall")
        keys = count // 2
        if self.pairs > keys:
            raise UserError(f"associative-recall: pairs={self.pairs}, but {count} ids give {keys} keys")
        markers = len(model.before)
        n = length - 1 - markers
        if n < 2 * self.pairs + 2:
            raise too_short("associative-recall", length, 2 * self.pairs + 3 + markers)
        asked = first + rng.permutation(keys)[: self.pairs]
        values = first + keys + rng.integers(count - keys, size=self.pairs)
        x = first + keys + rng.integers(count - keys, size=n)
        for key, value, start in zip(asked, values, self._starts(n, depth, rng), strict=True):
            x[start : start + 2] = key, value
        parts = [model.before, x, [asked[0], values[0]]]
        return SyntheticDocument(np.concatenate([np.asarray(p, dtype=np.int64) for p in parts]), 1)

    def _starts(self, n: int, depth: float, rng: np.random.Generator) -> list[int]:
        """First positions of the pairs, which do not overlap: the asked one by depth, then the others.

        How many of the others stand before the asked pair is drawn first, in proportion to the number of
        layouts, so that all layouts are equally likely.
        """
        at = round(depth * (n - 2))
        left, right = at, n - 2 - at  # tokens on either side
        others = self.pairs - 1
        layouts = [_layouts(left, i) * _layouts(right, others - i) for i in range(others + 1)]
        total = sum(layouts)  # not 0: at most one token per side is left over, and n has two to spare
        weights = [count / total for count in layouts]
        before = int(rng.choice(others + 1, p=weights))
        return [at, *_positions(0, left, before, rng), *_positions(at + 2, right, others - before, rng)]


def _layouts(tokens: int, pairs: int) -> int:
    """The number of layouts of ``pairs`` pairs of neighbours in ``tokens``: C(tokens - pairs, pairs)."""
    return comb(tokens - pairs, pairs) if tokens >= 2 * pairs else 0


def _positions(start: int, tokens: int, pairs: int, rng: np.random.Generator) -> list[int]:
    """First positions of ``pairs`` pairs in ``tokens`` from ``start`` on, uniform over all layouts."""
    slots = np.sort(rng.permutation(tokens - pairs)[:pairs])
    return [start + int(slot) + i for i, slot in enumerate(slots)]
