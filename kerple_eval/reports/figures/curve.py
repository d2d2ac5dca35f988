"""Extrapolation curves: perplexity against length, both logarithmic, the trained length marked.

A bar across a curve marks how far the model holds (:mod:`kerple_eval.stats.reach`), where it is not shown to
hold to the end. Bands are 95 % intervals over documents, where the cells are at hand and documents suffice;
over seeds they are one standard deviation to either side of the mean, as the paper's tables have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from kerple_eval.records.reader import RunReader
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
from kerple_eval.reports.grid import VALUES, Grid, chosen, model_names, read_grids
from kerple_eval.reports.tables.seeds import Family, families_of_seeds, fewer_seeds
from kerple_eval.reports.words import listing, trend

HELD = "|: holds to there, within 1 % of the best shorter length (kerple-eval reach)"
SEED_BANDS = "bands: mean ± standard deviation over seeds"


def make(
    folders: Sequence[str | Path], out: Path, *, task: str | None = None, protocol: str | None = None,
    models: Sequence[str] = (), over_seeds: bool = False,
) -> None:  # fmt: skip
    """One panel a (task, protocol); legend in the order of the curves at the longest length.

    Of ``models`` alone where any are given. ``over_seeds``: one curve per scheme, the mean over its seeds.
    """
    reader = RunReader(folders)
    grids = read_grids(reader, models)
    if over_seeds:
        save(compose(seed_pictures(chosen(grids, task, protocol))), out)
    else:
        known = sums.for_bands(reader, grids)
        save(compose(pictures(grids, known, task=task, protocol=protocol)), out)


def pictures(
    grids: Sequence[Grid], known: sums.ScoredCells, *, task: str | None = None, protocol: str | None = None
) -> list[Picture]:
    """One figure per grid, one curve per model."""
    names = model_names(grids)
    return [_picture(grid, _models(grid, names, known), sums.BANDS) for grid in chosen(grids, task, protocol)]


def seed_pictures(grids: Sequence[Grid]) -> list[Picture]:
    """One figure per grid, one curve per scheme; UserError where a grid holds one seed of each."""
    members = [families_of_seeds(grid)[0] for grid in grids]
    names = list(dict.fromkeys(family.label for found in members for family in found))
    return [
        _picture(grid, _schemes(grid, found, names), SEED_BANDS, fewer_seeds(grid, found, grid.values()[0]))
        for grid, found in zip(grids, members, strict=True)
    ]


def _models(grid: Grid, names: list[str], known: sums.ScoredCells) -> list[Curve]:
    value = grid.values()[0]
    found = []
    for model in grid.models:
        cells = [
            entry
            for length in grid.lengths
            if (entry := grid.entries.get((model, length))) and entry.row[value] is not None
        ]
        if cells:
            x, y = [e.row["length"] for e in cells], [e.row[value] for e in cells]
            lower, upper = sums.columns([sums.band(e, value, known) for e in cells])
            held = sums.holds_to(cells, known)
            found.append(Curve(model, names.index(model), x, y, lower, upper, held))
    return found


def _schemes(grid: Grid, members: Sequence[Family], names: list[str]) -> list[Curve]:
    value = grid.values()[0]
    found = []
    for family in members:
        spreads = {n: s for n in grid.lengths if (s := family.spread(n, value)) is not None}
        if spreads:
            ends = [None if s.std is None else (s.mean - s.std, s.mean + s.std) for s in spreads.values()]
            y = [s.mean for s in spreads.values()]
            found.append(
                Curve(family.label, names.index(family.label), list(spreads), y, *sums.columns(ends))
            )
    return found


def _picture(grid: Grid, found: Sequence[Curve], bands: str, note: str | None = None) -> Picture:
    value, trained = grid.values()[0], grid.trained_lengths
    found = sorted(found, key=lambda one: one.y[-1], reverse=True)  # as the curves end

    def paint(panel: Axes) -> None:
        curves(panel, found)
        value_axis(panel)
        panel.set_ylabel(VALUES[value])
        length_axis(panel, grid.lengths, "length L (tokens)")
        mark_trained(panel, trained)

    descriptions = [f"{one.label} {trend(one.x, one.y)}" for one in found]
    words = f"{VALUES[value]} against length in tokens".capitalize()
    if trained:
        words += f", trained length {listing([str(t) for t in sorted(trained)])} marked"
    words += (
        f". From the highest curve to the lowest: {'; '.join(descriptions)}."
        if descriptions
        else ": no finished cell."
    )
    notes = [bands] if any(one.lower for one in found) else []
    notes += [note] if note else []
    marked = [one for one in found if one.holds_to is not None]
    if marked:
        notes.append(HELD)
        words += f" {listing([f'{one.label} holds to {one.holds_to:g}' for one in marked])}."
    return Picture(f"{grid.task}, {grid.protocol}", paint, words, "; ".join(notes))
