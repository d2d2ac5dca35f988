"""Where a change of loss between two lengths comes from: classes of targets whose shares add up, and spans.

Over the targets that both cells score, by where the target was seen before. Let its *n-gram* be the target
and the ``n`` tokens before it:

    seen in the shorter context   the n-gram occurred there: the shorter window could have copied it too
    seen beyond it alone          it occurred in the longer context, and not in the shorter one: copying that
                                  the longer context alone allows
    new                           it did not occur in the longer context

and by what the target is: of its own text, the first character that is no white space says whether it is
a word, a number or punctuation; a word is begun, or continued where a letter or digit stands right before it.
Where a task says that it is code, names (identifiers that are no keywords of the language) are told from
words.

Each class's part is the sum of its targets' changes by the number of all targets; parts add up to the change.
Imports no torch.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerple_eval.records.cell import Cell
from kerple_eval.stats.context_gain import common_targets, target_losses
from kerple_eval.types import UserError

Whole = NDArray[np.int64]
Real = NDArray[np.float64]

ORIGINS = ("seen in the shorter context", "seen beyond it alone", "new")
KINDS = (
    "begins a word", "continues a word", "begins a name", "continues a name", "number", "punctuation",
    "whitespace", "marker",
)  # fmt: skip
#: Tokens before the target in its n-gram, unless asked otherwise.
NGRAM = 3
#: Targets of a span, and how many spans are listed at either end.
SPAN, SPANS = 16, 8
#: Words of a language that are no names.
KEYWORDS = {"python": frozenset(keyword.kwlist)}

_SPACE, _LETTER, _DIGIT, _OTHER, _NAME = range(5)  # what a byte of text belongs to


@dataclass(frozen=True)
class Text:
    """UTF-8 ``content`` of a document, and where each token of it starts and the last one ends ``[n + 1]``.

    ``names``: the language whose names are told from words, where the text is code.
    """

    content: bytes
    edges: Whole
    names: str | None = None


@dataclass(frozen=True)
class DocumentTokens:
    """A document's ids ``[n]`` and which of them are ``markers [n]``, no text; ``text``: None if unknown."""

    ids: Whole
    markers: NDArray[np.bool_]
    text: Text | None


@dataclass(frozen=True)
class DocumentChange:
    """The targets ``where [m]`` of a document that two cells score.

    ``losses [2, m]`` (nats) and ``contexts [2, m]`` (tokens) at the shorter and at the longer length.
    """

    name: str
    tokens: DocumentTokens
    where: Whole
    losses: Real
    contexts: Whole


@dataclass(frozen=True)
class Share:
    """A class of targets: their number, mean loss at both lengths, and part of the change (nats per target
    of all classes)."""

    name: str
    targets: int
    losses: tuple[float, float]
    part: float


@dataclass(frozen=True)
class Span:
    """Neighbouring targets ``first .. last`` of a document; ``change``: the sum of theirs, in nats."""

    document: str
    first: int
    last: int
    change: float
    text: str


@dataclass(frozen=True)
class GainSources:
    """``change``: mean over all targets of the loss at the longer length less that at the shorter one."""

    targets: int
    change: float
    origins: tuple[Share, ...]
    kinds: tuple[Share, ...]  # none where only token ids are known
    gained: tuple[Span, ...]
    lost: tuple[Span, ...]


def document_changes(one: Cell, two: Cell, tokens: Mapping[str, DocumentTokens]) -> list[DocumentChange]:
    """The documents with a target that both cells score; ``tokens`` by the sha256 that headers have of them.

    Raises:
        UserError: there is none.
    """
    sides = target_losses(one), target_losses(two)
    names = {document.sha256: document.name for document in one.header.documents}
    found = []
    for document in sides[0].losses:
        where = common_targets(*sides, document)
        if len(where):
            losses, contexts = (
                np.stack([getattr(side, name)[document][where] for side in sides])
                for name in ("losses", "contexts")
            )
            found.append(DocumentChange(names[document[0]], tokens[document[0]], where, losses, contexts))
    if not found:
        raise UserError(f"{one.key}, and {two.key}: no target is scored at both lengths")
    return found


def gain_sources(documents: Sequence[DocumentChange], ngram: int = NGRAM) -> GainSources:
    """Parts of the change by class, and the spans at its ends."""
    losses = np.concatenate([d.losses for d in documents], axis=1)
    origin = np.concatenate([origins(d.tokens.ids, d.where, d.contexts, ngram) for d in documents])
    kind = [kinds(d.tokens.text, d.tokens.markers)[d.where] for d in documents if d.tokens.text is not None]
    known = len(kind) == len(documents)
    change = losses[1] - losses[0]
    return GainSources(
        losses.shape[1],
        math.fsum(change) / losses.shape[1],
        _shares(ORIGINS, origin, losses),
        _shares(KINDS, np.concatenate(kind), losses) if known else (),
        _spans(documents, sign=-1.0),
        _spans(documents, sign=1.0),
    )


def _shares(names: Sequence[str], index: Whole, losses: Real) -> tuple[Share, ...]:
    found = []
    for number, name in enumerate(names):
        here = losses[:, index == number]
        if count := here.shape[1]:
            means = (math.fsum(here[0]) / count, math.fsum(here[1]) / count)
            found.append(Share(name, count, means, math.fsum(here[1] - here[0]) / losses.shape[1]))
    return tuple(found)


def origins(ids: Whole, where: Whole, contexts: Whole, ngram: int) -> Whole:
    """Index into ``ORIGINS`` of each target ``where [m]`` with ``contexts [2, m]``.

    The nearest earlier occurrence decides: another one reaches further back.
    """
    earliest = previous(ids, ngram)[where] - ngram  # first token of that occurrence
    there = earliest >= 0
    shorter, longer = where - contexts
    return np.where(there & (earliest >= shorter), 0, np.where(there & (earliest >= longer), 1, 2))


def previous(ids: Whole, ngram: int) -> Whole:
    """For each token the nearest earlier position of it after the same ``ngram`` tokens, or -1."""
    found = np.full(len(ids), -1, dtype=np.int64)
    if len(ids) <= ngram:
        return found
    tokens = np.unique(ids, return_inverse=True)[1]
    grams = np.zeros(len(ids) - ngram, dtype=np.int64)  # a number for each n-gram, a token longer each time
    for k in range(ngram + 1):
        pairs = grams * len(ids) + tokens[k : k + len(grams)]
        grams = np.unique(pairs, return_inverse=True)[1]
    order = np.argsort(grams, kind="stable")
    same = grams[order][1:] == grams[order][:-1]
    found[order[1:][same] + ngram] = order[:-1][same] + ngram
    return found


def kinds(text: Text, markers: NDArray[np.bool_]) -> Whole:
    """Index into ``KINDS`` of each token ``[n]``.

    A token without bytes of its own ends a character that the one before it began.
    """
    classes = _classes(text)
    start, stop = text.edges[:-1], text.edges[1:]
    at = np.arange(len(classes) + 1)
    ink = np.where(np.append(classes != _SPACE, True), at, len(classes))
    first_ink = np.minimum.accumulate(ink[::-1])[::-1][start]  # at a token's start or after it
    has_own = stop > start
    first = np.where(has_own, np.where(first_ink < stop, first_ink, start), np.maximum(start - 1, 0))
    kind = classes[first]
    before = np.where(first > 0, classes[first - 1], _SPACE)
    inside = ~has_own | np.isin(before, (_LETTER, _DIGIT, _NAME))
    rules = {
        "marker": markers,
        "whitespace": kind == _SPACE,
        "number": kind == _DIGIT,
        "punctuation": kind == _OTHER,
        "continues a name": (kind == _NAME) & inside,
        "begins a name": kind == _NAME,
        "continues a word": inside,
        "begins a word": ~inside,
    }
    return np.select(list(rules.values()), [KINDS.index(name) for name in rules])


def _classes(text: Text) -> Whole:
    """What the character that each byte belongs to is."""
    content = text.content.decode("utf-8")
    classes = np.array([
        _SPACE if c.isspace() else _LETTER if c.isalpha() else _DIGIT if c.isnumeric() else _OTHER
        for c in content
    ], dtype=np.int64)  # fmt: skip
    if text.names is not None:
        for match in re.finditer(r"[^\W\d]\w*", content):
            if match[0] not in KEYWORDS[text.names]:
                classes[match.start() : match.end()] = _NAME
    return np.repeat(classes, [len(c.encode("utf-8")) for c in content])


def _spans(documents: Sequence[DocumentChange], sign: float) -> tuple[Span, ...]:
    """The spans with the largest ``sign * change``, without overlap; shorter where no run is so long."""
    width = min(SPAN, max(_longest_run(d.where) for d in documents))
    found = []
    for document in documents:
        sums = np.concatenate([[0.0], np.cumsum(document.losses[1] - document.losses[0])])
        if len(sums) <= width:
            continue
        value = sign * (sums[width:] - sums[:-width])
        whole = document.where[width - 1 :] - document.where[: len(value)] == width - 1
        value[~whole] = -np.inf
        for _ in range(SPANS):
            at = int(value.argmax())
            if not value[at] > 0:
                break
            found.append((float(value[at]), document, at))
            value[max(0, at - width + 1) : at + width] = -np.inf
    found.sort(key=lambda item: -item[0])
    return tuple(_span(document, at, width) for _, document, at in found[:SPANS])


def _longest_run(where: Whole) -> int:
    breaks = np.flatnonzero(np.diff(where) != 1)
    return int(np.diff(np.concatenate([[-1], breaks, [len(where) - 1]])).max())


def _span(document: DocumentChange, at: int, width: int) -> Span:
    first, last = int(document.where[at]), int(document.where[at + width - 1])
    change = document.losses[1, at : at + width] - document.losses[0, at : at + width]
    if (text := document.tokens.text) is None:
        shown = " ".join(map(str, document.tokens.ids[first : last + 1]))
    else:
        shown = text.content[text.edges[first] : text.edges[last + 1]].decode("utf-8", errors="replace")
    return Span(document.name, first, last, math.fsum(change), shown)
