"""Extrapolation curves: perplexity against length, both logarithmic, the trained length marked.

Bands are 95 % intervals over documents, where the cells are at hand and documents suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from kerple_eval.reports import sums
from kerple_eval.reports.grid import VALUES, Grid, chosen, model_names, read_grids
from kerple_eval.reports.style import (
    Curve,
    Picture,
    compose,
    curves,
    length_axis,
    mark_trained,
    save,
    value_axis,
)
from kerple_eval.reports.words import listing, trend


def draw(
    folders: Sequence[str | Path], out: Path, *, task: str | None = None, protocol: str | None = None
) -> None:
    """One panel a (task, protocol); legend in the order of the curves at the longest length."""
    save(compose(pictures(folders, sums.for_bands(folders), task=task, protocol=protocol)), out)


def pictures(
    folders: Sequence[str | Path], known: sums.Sums, *, task: str | None = None, protocol: str | None = None
) -> list[Picture]:
    grids = read_grids(folders)
    names = model_names(grids)
    return [_picture(grid, names, known) for grid in chosen(grids, task, protocol)]


def _picture(grid: Grid, names: list[str], known: sums.Sums) -> Picture:
    value = grid.values()[0]
    found = []
    for model in sorted(grid.models, key=lambda model: -_last(grid, model, value)):
        cells = [
            entry
            for length in grid.lengths
            if (entry := grid.entries.get((model, length))) and entry.row[value] is not None
        ]
        if cells:
            x, y = [e.row["length"] for e in cells], [e.row[value] for e in cells]
            band = sums.columns([sums.band(e, value, known) for e in cells])
            found.append(Curve(model, names.index(model), x, y, *band))
    trained = grid.trained_lengths

    def paint(panel: Axes) -> None:
        curves(panel, found)
        value_axis(panel)
        panel.set_ylabel(VALUES[value])
        length_axis(panel, grid.lengths, "length L (tokens)")
        mark_trained(panel, trained)

    said = [f"{one.label} {trend(one.x, one.y)}" for one in found]
    words = f"{VALUES[value]} against length in tokens".capitalize()
    if trained:
        words += f", trained length {listing([str(t) for t in sorted(trained)])} marked"
    words += f". From the highest curve to the lowest: {'; '.join(said)}." if said else ": no finished cell."
    banded = any(one.lower for one in found)
    return Picture(f"{grid.task}, {grid.protocol}", paint, words, sums.BANDS if banded else "")


def _last(grid: Grid, model: str, value: str) -> float:
    """The curve's last value; a curve without one comes last in the legend."""
    for length in reversed(grid.lengths):
        entry = grid.entries.get((model, length))
        if entry is not None and entry.row[value] is not None:
            return float(entry.row[value])
    return float("-inf")
