"""LongPPL: perplexity on the tokens that need long context, chosen by a reference model's losses.

Source: Fang et al. 2024 (What is Wrong with Perplexity for Long-context Language Modeling?, arXiv
2410.23771), github.com/PKU-ML/LongPPL ``longppl/longppl.py``. With l_short and l_long the reference
model's losses of a target at a short and a long length (nats), a target is a *key token* where

    l_short - l_long > alpha    and    l_long < -beta        (alpha = 2, beta = -2)

LongPPL of a model at a length is ``exp(mean loss over the key tokens)``, of all documents together (in the
source too: documents weigh by their key tokens). Both lengths are cells of one (task, protocol); a target
counts where both score it and the long one saw more of its document. ``aligned`` scores the same targets
at every length.

What differs from the source: its short context is the last 4096 tokens and up to 1024 more, its evaluator
a large language model with a tokeniser of its own, mapped by characters. Here short is a length of the
run, the reference one of its models, and every model reads the same tokens, so targets map one to one. The
reference's own numbers are of tokens that its own losses chose, and so are too low for it.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import own_label
from kerple_eval.stats.documents import DocumentSums
from kerple_eval.stats.intervals import CellInterval, sums_interval
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

ALPHA, BETA = 2.0, -2.0
DocumentName = tuple[str, int]  # a document by the sha256 of its tokens, and its number among those alike
KeyTokens = dict[DocumentName, NDArray[np.int64]]  # targets of each document, in order


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
    common: int  # targets that might have been key tokens
    key_tokens: int
    documents: int  # with a key token
    scores: list[Score]


@dataclass
class _Group:
    cells: dict[tuple[str, int], Cell]
    tokenizers: dict[str, str]


def longppl(
    reader: RunReader,
    reference: str,
    *,
    alpha: float = ALPHA,
    beta: float = BETA,
    short: int | None = None,
    level: float = 0.95,
) -> list[LongPplTable]:
    """Tables of every (task, protocol) at which ``reference`` has two lengths.

    ``short`` is its shortest length unless given; the long one is its longest.

    Raises:
        UserError: no such model or length; a model that reads the text in other tokens.
    """
    groups = _gather(reader)
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


def _gather(reader: RunReader) -> dict[tuple[str, str], _Group]:
    groups: dict[tuple[str, str], _Group] = {}
    owners: dict[tuple[str, str], dict[str, str]] = {}
    tokenizers = {
        run.folder: {model.label: str(model.tokenizer) for model in run.specification.models}
        for run in reader.runs
    }
    for run, cell in reader.cells():
        if not isinstance(cell, Cell):
            continue
        name = (cell.key.task, cell.key.protocol)
        group = groups.setdefault(name, _Group({}, {}))
        label = own_label(cell.key.model, run.folder, owners.setdefault(name, {}))
        group.cells[label, cell.key.length] = cell
        group.tokenizers[label] = tokenizers[run.folder][cell.key.model]
    return groups


def _table(
    name: tuple[str, str], group: _Group, reference: str, lengths: tuple[int, int], *,
    alpha: float, beta: float, level: float,
) -> LongPplTable:  # fmt: skip
    (task, protocol), (short, long) = name, lengths
    chosen, common = key_tokens(group.cells[reference, short], group.cells[reference, long], alpha, beta)
    known = set(_by_document(group.cells[reference, long]))
    scores = []
    for (label, _), cell in group.cells.items():
        if group.tokenizers[label] != group.tokenizers[reference] and not known & set(_by_document(cell)):
            raise UserError(
                f"{task}, {protocol}: {label} reads the text in other tokens than {reference}; LongPPL needs "
                "the targets of both to be the same: give a run of models of one tokeniser"
            )
        scores.append(_score(label, cell, chosen, level))
    count = sum(map(len, chosen.values()))
    return LongPplTable(task, protocol, reference, short, long, common, count, len(chosen), scores)


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
