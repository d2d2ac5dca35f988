"""A value of every target against its context (tokens the model saw), by document and bin of context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerple_eval.records.cell import Cell
from kerple_eval.records.reductions import contexts
from kerple_eval.stats.intervals import ratio_interval, shortage

BINS_PER_DOUBLING = 2


@dataclass(frozen=True)
class Binned:
    """Sums of a value over the targets of a document and bin of context: ``sums [n, bins]`` and
    ``counts [n, bins]``; bin i holds contexts ``edges[i]`` to ``edges[i + 1] - 1``. Context 0, of a target
    that only a marker stands before, has a bin of its own where there is one.
    """

    label: str
    length: int
    trained: int | None
    edges: NDArray[np.int64]
    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def bins(self) -> list[int]:
        """Those that hold targets."""
        return [i for i in range(len(self.edges) - 1) if self.counts[:, i].sum()]

    @property
    def drawn(self) -> list[int]:
        """Bins of a curve: those that hold targets, but for context 0, which no logarithmic axis has."""
        return [i for i in self.bins if self.edges[i] > 0]

    @property
    def note(self) -> str:
        """What a curve leaves out; empty where that is nothing."""
        out = sum(int(self.counts[:, i].sum()) for i in self.bins if i not in self.drawn)
        return f"{self.label}: {out:,} targets after a marker alone (context 0) are not drawn" if out else ""

    def mean(self, i: int) -> float:
        return float(self.sums[:, i].sum() / self.counts[:, i].sum())

    def band(self, i: int) -> tuple[float, float] | None:
        """The 95 % interval of the mean over documents; None where they are too few."""
        some = self.counts[:, i] > 0
        value, count = self.sums[some, i], self.counts[some, i]
        if shortage(count):
            return None
        found = ratio_interval(value, count)
        return found.low, found.high

    def curve(self) -> tuple[list[float], list[float], list[tuple[float, float] | None]]:
        """Middle of each bin that is ``drawn``, mean there, and its interval over documents."""
        x = [math.sqrt(self.edges[i] * (self.edges[i + 1] - 1.0)) for i in self.drawn]
        return x, [self.mean(i) for i in self.drawn], [self.band(i) for i in self.drawn]


def bin_edges(longest: int, per_doubling: int = BINS_PER_DOUBLING) -> NDArray[np.int64]:
    """Edges of context bins: single tokens first, then so many a doubling, up to ``longest``."""
    powers = np.arange(0, np.log2(longest + 1) + 1, 1 / per_doubling)
    edges = np.unique(np.round(2.0**powers).astype(np.int64))
    return np.append(edges[edges <= max(1, longest / 2 ** (0.5 / per_doubling))], longest + 1)


def by_context(
    cell: Cell, label: str, rows: Sequence[NDArray[np.generic]], per_doubling: int = BINS_PER_DOUBLING
) -> Binned:
    """``rows``: the values of each window's targets, ``[targets]``, as ``cell.losses``."""
    seen = contexts(cell.windows)
    edges = bin_edges(cell.key.length, per_doubling)
    if not seen.all():
        edges = np.insert(edges, 0, 0)
    bins, documents = len(edges) - 1, len(cell.header.documents)
    owner = np.repeat(cell.document, [window.targets for window in cell.windows])
    index = owner * bins + np.searchsorted(edges, seen, side="right") - 1
    values = np.concatenate(rows).astype(np.float64)
    shape, size = (documents, bins), documents * bins
    return Binned(
        label, cell.key.length, cell.header.train_length, edges,
        np.bincount(index, weights=values, minlength=size).astype(np.float64).reshape(shape),
        np.bincount(index, minlength=size).reshape(shape),
    )  # fmt: skip
