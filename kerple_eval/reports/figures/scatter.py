"""Two schemes document by document: mean loss of one against that of the other at one length.

A point above the identity line is a document on which the model is worse than the reference. A mean hides
whether a scheme is better everywhere or much better on a few documents; this shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from kerple_eval.records.reader import RunReader
from kerple_eval.reports import sums
from kerple_eval.reports.figures.style import Picture, compose, line_style, plain, save
from kerple_eval.reports.grid import Grid, chosen, model_names, read_grids
from kerple_eval.stats.documents import Scored, different_targets
from kerple_eval.types import UserError


def make(
    folders: Sequence[str | Path], out: Path, *, against: str, length: int | None = None,
    task: str | None = None, protocol: str | None = None,
) -> None:  # fmt: skip
    """One panel a model and (task, protocol), at ``length`` or the longest each pair has."""
    reader = RunReader(folders)
    grids = read_grids(reader)
    known = sums.read(reader, grids)
    save(compose(pictures(grids, known, against=against, length=length, task=task, protocol=protocol)), out)


def pictures(
    grids: Sequence[Grid], known: sums.ScoredCells, *, against: str, length: int | None = None,
    task: str | None = None, protocol: str | None = None,
) -> list[Picture]:  # fmt: skip
    """Refused where ``against`` is unknown, or nothing is on the same targets."""
    names = model_names(grids, against)
    found, reasons = [], []
    for grid in chosen(grids, task, protocol):
        for model in (m for m in grid.models if m != against):
            pair = _pair(grid, model, against, length, known)
            if pair is None:
                continue
            if why := different_targets(*pair):
                reasons.append(why)
            else:
                found.append(_picture(grid, model, against, pair, names.index(model)))
    if not found:
        at = "" if length is None else f" at length {length}"
        raise UserError(
            reasons[0] if reasons else f"no other model has a finished cell{at} to compare with {against}"
        )
    return found


def _pair(
    grid: Grid, model: str, against: str, length: int | None, known: sums.ScoredCells
) -> tuple[Scored, Scored] | None:
    """Both cells at the length, or at the longest that both have."""
    for at in reversed(grid.lengths) if length is None else [length]:
        a = sums.of(grid.entries.get((model, at)), known)
        b = sums.of(grid.entries.get((against, at)), known)
        if a is not None and b is not None:
            return a, b
    return None


def _picture(grid: Grid, model: str, against: str, pair: tuple[Scored, Scored], index: int) -> Picture:
    y, x = (side.sums.sums / side.sums.counts for side in pair)
    above, below, total = int(np.sum(y > x)), int(np.sum(y < x)), len(x)
    length = pair[0].key.length

    def paint(panel: Axes) -> None:
        look = line_style(index)
        panel.scatter(x, y, s=11, color=look["color"], marker=look["marker"], alpha=0.75, linewidths=0)
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        room = 0.04 * (high - low) or 0.04 * abs(high)
        panel.plot([low - room, high + room], [low - room, high + room], color="0.4", linewidth=0.8, zorder=0)
        panel.set_xlim(low - room, high + room)
        panel.set_ylim(low - room, high + room)
        panel.set_aspect("equal")
        panel.locator_params(nbins=5)
        panel.set_xlabel(f"{plain(against)} (nats per target)")
        panel.set_ylabel(plain(model))

    words = (
        f"Mean loss of each of {total} documents in nats per target, {model} against {against}, at length "
        f"{length}: {model} is worse on {above} and better on {below}. {against} spans {x.min():.3f} to "
        f"{x.max():.3f}, {model} {y.min():.3f} to {y.max():.3f}."
    )
    title = f"{grid.task}, {grid.protocol}, L = {length}: {model} worse on {above}, better on {below}"
    return Picture(title, paint, words, f"{total} documents; on the line both are as good")
