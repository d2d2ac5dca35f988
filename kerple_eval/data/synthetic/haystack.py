"""Prose with one sentence in it (the needle) and, at its end, that sentence again without its last word.

    INTRO  filler  NEEDLE  filler  QUESTION  ANSWER

The text is tokenised whole, so that no token differs from what the model would read; then the two
parts of filler lose tokens at their beginnings until the document has exactly L + 1 tokens, with
``round(depth x filler)`` of them before the needle. So each part begins in the middle of a sentence
and ends with a whole one.

The answer's tokens are those from the answer's first character on. A tokeniser may write the one space
before it into the same token; one that joins it to anything else is refused, since then the answer has
no tokens of its own. The needle must hold the answer in the same tokens, or copying it would not be
enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kerple_eval.data.synthetic.base import Ids, SyntheticDocument, too_short
from kerple_eval.data.tokenizer import Encoding, ModelTokens
from kerple_eval.types import UserError


@dataclass(frozen=True)
class Haystack:
    """The parts of a document, joined by single spaces; ``filler`` are sentences to draw from."""

    task: str
    intro: str
    needle: str
    question: str
    answer: str  # ASCII
    filler: tuple[str, ...]
    shuffled: bool  # whether sentences come in random order, or in turn


@dataclass(frozen=True)
class _Parts:
    """Token indices of a tokenised haystack."""

    encoding: Encoding
    counts: Ids
    before: tuple[int, int]  # filler tokens before the needle
    after: tuple[int, int]
    answer: int  # first token of the answer

    @property
    def fixed(self) -> int:
        """Tokens that are not filler."""
        return len(self.encoding.ids) - sum(stop - start for start, stop in (self.before, self.after))


def build(
    hay: Haystack, model: ModelTokens, length: int, depth: float, rng: np.random.Generator
) -> SyntheticDocument:
    """``hay`` in exactly ``length + 1`` tokens, the first-token marker among them."""
    markers = len(model.before)
    seed = int(rng.integers(2**32))
    characters = 2 * length
    while True:
        parts = _split(hay, model, [_sentences(hay, [seed, side], characters) for side in (0, 1)])
        wanted = length + 1 - markers - parts.fixed
        if wanted < 0:
            raise too_short(hay.task, length, length - wanted)
        first = round(depth * wanted)
        have = min(b - a for a, b in (parts.before, parts.after))
        need = max(first, wanted - first)
        if have >= need:
            break
        characters = 200 + characters * need * 21 // (have * 20)  # 5 % more than expected
    kept = np.ones(len(parts.encoding.ids), dtype=bool)
    for (a, b), n in ((parts.before, first), (parts.after, wanted - first)):
        kept[a : b - n] = False
    ids, counts = parts.encoding.ids[kept], parts.counts[kept]
    if model.before:
        ids = np.concatenate([np.array(model.before, dtype=np.int64), ids])
        counts = np.concatenate([np.zeros(markers, dtype=np.int64), counts])
    return SyntheticDocument(ids, len(parts.encoding.ids) - parts.answer, counts)


def _sentences(hay: Haystack, seed: list[int], characters: int) -> str:
    """At least ``characters`` characters of filler: every sentence equally often."""
    rng = np.random.default_rng(seed)
    sentences: list[str] = []
    size = 0
    while size < characters or not sentences:
        order = rng.permutation(len(hay.filler)) if hay.shuffled else np.arange(len(hay.filler))
        sentences += [hay.filler[i] for i in order.tolist()]
        size = sum(map(len, sentences[-len(order) :])) + len(order) + size
    return " ".join(sentences)


def _split(hay: Haystack, model: ModelTokens, filler: list[str]) -> _Parts:
    """Tokenise the whole and find its parts."""
    assert model.tokenizer is not None
    pieces = [hay.intro, filler[0], hay.needle, filler[1], hay.question, hay.answer]
    text = " ".join(pieces)
    assert text.isascii()
    encoding = model.tokenizer.encode(text)
    if encoding.byte_counts is None:
        raise _ambiguous(hay, model, "does not give the text of each token")
    ends = np.cumsum(encoding.byte_counts)
    starts = ends - encoding.byte_counts
    at = np.cumsum([0, *(len(piece) + 1 for piece in pieces)])  # where each piece begins, in bytes
    last = at[:-1] + [len(piece) for piece in pieces]
    answer = int(np.searchsorted(ends, at[5], side="right"))  # the token that holds its first byte
    if starts[answer] < at[5] - 1:
        raise _ambiguous(hay, model, "joins the answer's first token to the text before it")
    # The space before the answer is a token of its own where the answer does not take it in.
    parts = _Parts(
        encoding,
        encoding.byte_counts,
        (_after(starts, last[0]), _before(ends, at[2])),
        (_after(starts, last[2]), _before(ends, at[4])),
        answer,
    )
    ids, wanted = encoding.ids[parts.before[1] : parts.after[0]], encoding.ids[answer:]
    if not any((ids[i : i + len(wanted)] == wanted).all() for i in range(len(ids) - len(wanted) + 1)):
        raise _ambiguous(hay, model, "uses other tokens for the answer inside the text than at its end")
    return parts


def _after(starts: Ids, byte: int) -> int:
    """The first token with nothing before ``byte``, the end of a piece."""
    return int(np.searchsorted(starts, byte, side="left"))


def _before(ends: Ids, byte: int) -> int:
    """One past the last token that ends before ``byte``, the start of a piece, or at the space before it."""
    return int(np.searchsorted(ends, byte - 1, side="right"))


def _ambiguous(hay: Haystack, model: ModelTokens, why: str) -> UserError:
    identity = "none" if model.tokenizer is None else model.tokenizer.identity
    return UserError(
        f"{hay.task}: the tokeniser of model {model.label} ({identity}) {why}, so the answer's tokens "
        "are ambiguous; use copy or associative-recall"
    )
