"""Losses of cells by document, and the intervals that figures draw as bands. Reads cells, not summaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.reductions import perplexity
from kerple_eval.reports.grid import Grid, GridEntry
from kerple_eval.stats.documents import Scored, different_targets, paired_sums, scored
from kerple_eval.stats.intervals import (
    MINIMUM_DOCUMENTS,
    Interval,
    ratio_interval,
    shortage,
    sums_interval,
)
from kerple_eval.stats.reach import losses_hold
from kerple_eval.types import CellKey

#: What the bands of a figure are, for its caption.
BANDS = "bands: 95 % intervals over documents"
Band = tuple[float, float]
ScoredCells = dict[tuple[Path, CellKey], Scored]


def read(reader: RunReader, grids: Sequence[Grid], fewest: int = 1) -> ScoredCells:
    """The grids' finished cells of at least ``fewest`` documents whose files are here."""
    found: ScoredCells = {}
    for entry in (entry for grid in grids for entry in grid.entries.values()):
        if entry.ok and entry.row["documents"] >= fewest:
            cell = reader.cell(entry.folder, entry.key)
            if isinstance(cell, Cell):
                found[entry.folder, entry.key] = scored(cell)
    return found


def for_bands(reader: RunReader, grids: Sequence[Grid]) -> ScoredCells:
    """Those of enough documents for an interval."""
    return read(reader, grids, MINIMUM_DOCUMENTS)


def of(entry: GridEntry | None, known: ScoredCells) -> Scored | None:
    """The sums of a cell of a grid; None where there is no such cell, or its file was not read."""
    return None if entry is None else known.get((entry.folder, entry.key))


def band(entry: GridEntry, value: str, known: ScoredCells) -> Band | None:
    """The 95 % interval of a cell's ``value``; None where its file is not here or documents are few."""
    cell = of(entry, known)
    if cell is None:
        return None
    found = sums_interval(cell.sums)
    if value == "ppl":
        ends = found.ppl or (None, None)
        return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])
    interval = found.nll if value == "nll" else found.bits_per_byte
    return None if interval is None else (interval.low, interval.high)


def ratio_band(entry: GridEntry, reference: GridEntry, known: ScoredCells) -> Band | None:
    """The 95 % interval of the ratio of perplexities, paired by document; None as for :func:`band`."""
    a, b = of(entry, known), of(reference, known)
    if a is None or b is None or a is b or different_targets(a, b) or shortage(a.sums.counts):
        return None
    found: Interval = ratio_interval(*paired_sums(a, b))
    low, high = perplexity(found.low), perplexity(found.high)
    return None if low is None or high is None else (low, high)


def holds_to(entries: Sequence[GridEntry], known: ScoredCells) -> int | None:
    """The length a model holds to, of its cells in order of length; None where it is shown to hold to the
    last, or where too little is known."""
    cells = [cell for entry in entries if (cell := of(entry, known)) is not None]
    if len(cells) < 2 or len(cells) < len(entries) or shortage(cells[0].sums.counts):
        return None
    counts = cells[0].sums.counts
    if any(different_targets(c, cells[0]) or not np.array_equal(c.sums.counts, counts) for c in cells):
        return None
    steps = losses_hold([(cell.key.length, cell.sums.sums) for cell in cells], counts)
    held = [cells[0].key.length, *(step.length for step in steps if step.outcome == "holds")][-1]
    return None if held == cells[-1].key.length else held


def columns(bands: Sequence[Band | None]) -> tuple[list[float], list[float]] | tuple[None, None]:
    """Lower and upper ends for drawing, NaN where a point has no band; (None, None) where none has."""
    if not any(bands):
        return None, None
    return [b[0] if b else math.nan for b in bands], [b[1] if b else math.nan for b in bands]
