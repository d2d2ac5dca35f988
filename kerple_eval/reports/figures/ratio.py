"""Perplexity as a ratio to one scheme's, by length: 1 is as good, above 1 is worse.

ratio(L) = exp(nll(L) - nll_reference(L)), on the same targets or not at all. Bands are 95 % intervals of
the paired difference over documents: much narrower than those of two curves, since both schemes find the
same documents hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from kerple_eval.records.reader import RunReader
from kerple_eval.records.reductions import perplexity
from kerple_eval.reports import sums
from kerple_eval.reports.figures.style import (
    Curve,
    Picture,
    compose,
    curves,
    length_axis,
    mark_trained,
    save,
    value_axis,
)
from kerple_eval.reports.grid import Grid, GridEntry, chosen, model_names, read_grids
from kerple_eval.reports.words import trend
from kerple_eval.types import UserError


def make(
    folders: Sequence[str | Path], out: Path, *, against: str, task: str | None = None,
    protocol: str | None = None, models: Sequence[str] = (),
) -> None:  # fmt: skip
    """One panel a (task, protocol) that has the model ``against``; legend in the order of the curves.

    Of ``models`` alone where any are given.
    """
    reader = RunReader(folders)
    grids = read_grids(reader, [*models, against] if models else ())
    known = sums.for_bands(reader, grids)
    save(compose(pictures(grids, known, against=against, task=task, protocol=protocol)), out)


def pictures(
    grids: Sequence[Grid], known: sums.ScoredCells, *, against: str, task: str | None = None,
    protocol: str | None = None,
) -> list[Picture]:  # fmt: skip
    """Refused where ``against`` is unknown, or no other model has a cell on the same targets."""
    names = model_names(grids, against)
    found, reasons = [], list[str]()
    for grid in chosen(grids, task, protocol):
        left_out: list[str] = []
        curves_of = _curves(grid, names, against, known, left_out) if against in grid.models else []
        if curves_of:
            found.append(_picture(grid, curves_of, against, left_out))
        reasons += left_out
    if not found:
        why = ", ".join(reasons) or "no other model has a finished cell at a length of its own"
        raise UserError(f"nothing to compare with {against}: {why}")
    return found


def _curves(
    grid: Grid, names: list[str], against: str, known: sums.ScoredCells, left_out: list[str]
) -> list[Curve]:
    """In the order in which they end; what cannot be drawn joins ``left_out``, with its reason."""
    found = []
    for model in (m for m in grid.models if m != against):
        x, y, bands = [], [], []
        for length in grid.lengths:
            entry, reference = grid.entries.get((model, length)), grid.entries.get((against, length))
            if not (entry and reference and entry.ok and reference.ok):
                continue
            ratio = _ratio(entry, reference)
            if isinstance(ratio, str):
                left_out.append(f"{model} at {length} ({ratio})")
                continue
            x.append(length)
            y.append(ratio)
            bands.append(sums.ratio_band(entry, reference, known))
        if x:
            found.append(Curve(model, names.index(model), x, y, *sums.columns(bands)))
    return sorted(found, key=lambda one: -one.y[-1])


def _picture(grid: Grid, found: Sequence[Curve], against: str, left_out: Sequence[str]) -> Picture:
    def paint(panel: Axes) -> None:
        panel.axhline(1, color="0.3", linewidth=0.8, zorder=0)
        curves(panel, found)
        value_axis(panel, named=1)
        panel.set_ylabel("perplexity, ratio")
        length_axis(panel, grid.lengths, "length L (tokens)")
        mark_trained(panel, grid.trained_lengths)

    descriptions = "; ".join(f"{one.label} {trend(one.x, one.y)}" for one in found)
    words = f"Perplexity as a ratio to that of {against}, against length in tokens. {descriptions}."
    notes = [sums.BANDS + ", paired"] if any(one.lower for one in found) else []
    if left_out:
        notes.append(f"left out: {', '.join(left_out)}")
    return Picture(f"{grid.task}, {grid.protocol}: against {against}", paint, words, "; ".join(notes))


def _ratio(entry: GridEntry, reference: GridEntry) -> float | str:
    """The ratio, or why there is none."""
    if entry.row["targets_hash"] != reference.row["targets_hash"]:
        return "other targets"
    ratio = perplexity(entry.row["nll"] - reference.row["nll"])
    return "beyond the largest number" if ratio is None else ratio
