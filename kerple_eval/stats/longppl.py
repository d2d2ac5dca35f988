"""LongPPL: perplexity on the tokens that need long context, chosen by a reference model's losses.

Source: Fang et al. 2024 (What is Wrong with Perplexity for Long-context Language Modeling?, arXiv
2410.23771), github.com/PKU-ML/LongPPL ``longppl/longppl.py``. With l_short and l_long the reference
model's losses of a target at a short and a long length (nats), a target is a *key token* where

    l_short - l_long > alpha    and    l_long < -beta        (alpha = 2, beta = -2)

LongPPL of a model at a length is ``exp(mean loss over the key tokens)``, of all documents together (in the
source too: documents weigh by their key tokens). Both lengths are cells of one (task, protocol); a target
counts where both score it and the long one saw more of its document. ``aligned`` scores the same targets
at every length.

Models that read the reference's tokens are scored on the same targets. Those of another tokeniser are scored,
as in the source, on their own tokens within the same characters (:mod:`kerple_eval.stats.key_text`), for
which the text is read again. Key tokens may also come from a file, by characters for every model.

What differs from the source: its short context is the last 4096 tokens and up to 1024 more. Here short is a
length of the run and the reference one of its models. The reference's own numbers are of tokens that its own
losses chose, and so are too low for it.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import Run, own_label
from kerple_eval.stats.documents import DocumentSums
from kerple_eval.stats.gain import DocumentTokens
from kerple_eval.stats.intervals import CellInterval, sums_interval
from kerple_eval.stats.key_text import KeyText, key_document, key_tokens_of
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

ALPHA, BETA = 2.0, -2.0
DocumentName = tuple[str, int]  # a document by the sha256 of its tokens, and its number among those alike
KeyTokens = dict[DocumentName, NDArray[np.int64]]  # targets of each document, in order
#: The documents of a run's cell by the sha256 of their tokens, read again.
ReadText = Callable[[Run, Cell], Mapping[str, DocumentTokens]]


@dataclass(frozen=True, slots=True)
class Score:
    """One model at one length; ``found`` is None where ``why`` says what it lacks."""

    model: str
    length: int
    scored: int  # key tokens that the cell scores
    found: CellInterval | None
    nll: float  # mean over all targets of the cell
    why: str = ""


@dataclass(frozen=True)
class LongPplTable:
    """One (task, protocol): the key tokens and every model's scores on them."""

    task: str
    protocol: str
    reference: str
    short: int
    long: int
    alpha: float
    beta: float
    common: int  # targets that might have been key tokens
    key_tokens: int
    documents: int  # with a key token
    scores: list[Score]
    as_text: Callable[[], KeyText]  # its key tokens by characters; reads the text again


@dataclass
class _Group:
    cells: dict[tuple[str, int], Cell]
    runs: dict[str, Run]  # of each label
    names: dict[str, str]  # label -> that of its own run
    read: ReadText
    texts: dict[tuple[str, tuple[str, ...]], Mapping[str, DocumentTokens]]

    def tokenizer(self, label: str) -> str | None:
        return self.runs[label].specification.model(self.names[label]).tokenizer

    def documents(self, label: str, cell: Cell) -> list[tuple[str, DocumentTokens]]:
        """Name and tokens of the cell's documents; read once for all lengths of a model."""
        hashes = tuple(entry.sha256 for entry in cell.header.documents)
        if (label, hashes) not in self.texts:
            self.texts[label, hashes] = self.read(self.runs[label], cell)
        read = self.texts[label, hashes]
        return [(entry.name, read[entry.sha256]) for entry in cell.header.documents]


def longppl(
    reader: RunReader,
    reference: str,
    read: ReadText,
    *,
    alpha: float = ALPHA,
    beta: float = BETA,
    short: int | None = None,
    level: float = 0.95,
) -> list[LongPplTable]:
    """Tables of every (task, protocol) at which ``reference`` has two lengths.

    ``short`` is its shortest length unless given; the long one is its longest.

    Raises:
        UserError: no such model or length; a model of other tokens whose text cannot be read again.
    """
    groups = _gather(reader, read)
    labels = list(dict.fromkeys(label for group in groups.values() for label, _ in group.cells))
    if reference not in labels:
        raise unknown("reference model", reference, labels)
    found, lengths = [], set()
    for name, group in groups.items():
        reference_lengths = sorted(length for label, length in group.cells if label == reference)
        lengths |= set(reference_lengths)
        low = reference_lengths[0] if short is None and reference_lengths else short
        if low in reference_lengths and reference_lengths[-1] > low:
            ends = (low, reference_lengths[-1])
            found.append(_table(name, group, reference, ends, alpha=alpha, beta=beta, level=level))
    if not found:
        have = ", ".join(map(str, sorted(lengths))) or "none"
        wanted = "two lengths" if short is None else f"length {short} and a longer one"
        raise UserError(
            f"{reader.names}: {reference} has no finished cells of one protocol at {wanted} (it has {have})"
        )
    return found


def longppl_of(
    reader: RunReader, keys: KeyText, read: ReadText, *, level: float = 0.95
) -> list[LongPplTable]:
    """The same with key tokens that were chosen before, of every protocol over their text.

    Raises:
        UserError: a run of another text; a text that cannot be read again.
    """
    tables = []
    for (task, protocol), group in _gather(reader, read).items():
        scores = [_mapped(label, cell, keys, group, level) for (label, _), cell in group.cells.items()]
        tables.append(
            LongPplTable(
                task, protocol, keys.reference, keys.short, keys.long, keys.alpha, keys.beta, keys.targets,
                keys.key_tokens, len(keys.with_key_tokens), scores, lambda: keys,
            )
        )  # fmt: skip
    if not tables:
        raise UserError(f"{reader.names}: no finished cell")
    return tables


def _gather(reader: RunReader, read: ReadText) -> dict[tuple[str, str], _Group]:
    groups: dict[tuple[str, str], _Group] = {}
    owners: dict[tuple[str, str], dict[str, str]] = {}
    for run, cell in reader.cells():
        if not isinstance(cell, Cell):
            continue
        name = (cell.key.task, cell.key.protocol)
        group = groups.setdefault(name, _Group({}, {}, {}, read, {}))
        label = own_label(cell.key.model, run.folder, owners.setdefault(name, {}))
        group.cells[label, cell.key.length] = cell
        group.runs[label] = run
        group.names[label] = cell.key.model
    return groups


def _table(
    name: tuple[str, str], group: _Group, reference: str, lengths: tuple[int, int], *,
    alpha: float, beta: float, level: float,
) -> LongPplTable:  # fmt: skip
    (task, protocol), (short, long) = name, lengths
    cell = group.cells[reference, long]
    chosen, common = key_tokens(group.cells[reference, short], cell, alpha, beta)
    count = sum(map(len, chosen.values()))

    @cache
    def as_text() -> KeyText:
        model = group.runs[reference].specification.model(group.names[reference])
        none = np.empty(0, dtype=np.int64)
        documents = tuple(
            key_document(entry, tokens, chosen.get(own, none))
            for own, (entry, tokens) in zip(_by_document(cell), group.documents(reference, cell), strict=True)
        )
        return KeyText(
            task, protocol, reference, model.weights_sha256, model.tokenizer, short, long, alpha, beta,
            common, count, documents,
        )  # fmt: skip

    known = set(_by_document(cell))
    scores = []
    for (label, _), each in group.cells.items():
        if group.tokenizer(label) == group.tokenizer(reference) or known & set(_by_document(each)):
            scores.append(_score(label, each, chosen, level))
        else:
            scores.append(_mapped(label, each, as_text(), group, level))
    return LongPplTable(
        task, protocol, reference, short, long, alpha, beta, common, count, len(chosen), scores, as_text
    )


def _mapped(label: str, cell: Cell, keys: KeyText, group: _Group, level: float) -> Score:
    found, lacking = key_tokens_of(keys, group.documents(label, cell))
    chosen = {name: where for name, where in zip(_by_document(cell), found, strict=True) if len(where)}
    score = _score(label, cell, chosen, level)
    if not lacking:
        return score
    why = f"lacks text of {lacking} of {len(keys.with_key_tokens)} documents with key tokens"
    return replace(score, found=None, why=why)


def key_tokens(short: Cell, long: Cell, alpha: float, beta: float) -> tuple[KeyTokens, int]:
    """Key tokens by document, and how many targets both cells score, the long one with more context."""
    first, second = _by_document(short), _by_document(long)
    chosen: KeyTokens = {}
    common = 0
    for name in second:
        if name not in first:
            continue
        (a, seen_a), (b, seen_b) = first[name], second[name]
        both = (seen_a >= 0) & (seen_b > seen_a)
        common += int(both.sum())
        key = np.flatnonzero(both & (a - b > alpha) & (b < -beta))
        if len(key):
            chosen[name] = key
    return chosen, common


def _score(label: str, cell: Cell, chosen: KeyTokens, level: float) -> Score:
    every = _by_document(cell)
    sums, counts, names = [], [], []
    missing = 0
    for name, positions in chosen.items():
        losses, seen = every.get(name, (np.empty(0), np.empty(0, dtype=np.int64)))
        there = positions[positions < len(seen)]
        there = there[seen[there] >= 0]
        missing += len(positions) - len(there)
        names.append(f"{name[0]} {name[1]}")
        sums.append(float(losses[there].sum()))
        counts.append(len(there))
    scored = sum(counts)
    nll = float(cell.summary()["nll"])
    if not chosen or missing:
        why = f"scores {scored} of {scored + missing} key tokens" if chosen else "no key tokens"
        return Score(label, cell.key.length, scored, None, nll, why)
    order = sorted(range(len(names)), key=names.__getitem__)
    found = DocumentSums(
        tuple(names[i] for i in order), np.array(sums)[order], np.array(counts, dtype=np.int64)[order]
    )
    return Score(label, cell.key.length, scored, sums_interval(found, level=level), nll)


def _by_document(cell: Cell) -> dict[DocumentName, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Losses (nats) and contexts of each document's tokens; a context of -1 is a target not scored."""
    names: list[DocumentName] = []
    for entry in cell.header.documents:
        sha = entry.sha256
        names.append((sha, sum(sha == other for other, _ in names)))
    sizes = [entry.tokens for entry in cell.header.documents]
    found = {
        name: (np.zeros(n), np.full(n, -1, dtype=np.int64)) for name, n in zip(names, sizes, strict=True)
    }
    for number, window, row in zip(cell.document.tolist(), cell.windows, cell.losses, strict=True):
        losses, seen = found[names[number]]
        where = slice(window.first_target, window.stop + 1)
        losses[where] = row
        seen[where] = np.arange(window.first_target, window.stop + 1) - window.start
    return found
