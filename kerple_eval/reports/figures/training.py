"""Perplexity against training steps of models that were watched (``kerple_eval.Watch``), a curve a length.

Bands are 95 % intervals over documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import own_label
from kerple_eval.reports import sums
from kerple_eval.reports.figures.style import Curve, Picture, compose, curves, save, value_axis
from kerple_eval.reports.words import trend
from kerple_eval.stats.documents import document_sums
from kerple_eval.stats.intervals import sums_interval
from kerple_eval.types import UserError

Point = tuple[int, float, sums.Band | None]  # step, perplexity, its interval


def make(
    folders: Sequence[str | Path], out: Path, *, task: str | None = None, protocol: str | None = None
) -> None:
    """One panel a (task, protocol)."""
    save(compose(pictures(RunReader(folders), task=task, protocol=protocol)), out)


def pictures(reader: RunReader, *, task: str | None = None, protocol: str | None = None) -> list[Picture]:
    """One figure a (task, protocol), one curve a model and length.

    Raises:
        UserError: no cell is of a step of a training.
    """
    found: dict[tuple[str, str], dict[tuple[str, int], list[Point]]] = {}
    owners: dict[str, str] = {}
    for run, cell in reader.cells(task=task, protocol=protocol):
        step = cell.header.step
        if step is None or not isinstance(cell, Cell) or (ppl := cell.summary()["ppl"]) is None:
            continue
        name = own_label(cell.key.model.rpartition("@")[0], run.folder, owners)
        low, high = sums_interval(document_sums(cell)).ppl or (None, None)
        band = None if low is None or high is None else (low, high)
        curve = found.setdefault((cell.key.task, cell.key.protocol), {})
        curve.setdefault((name, cell.key.length), []).append((step, ppl, band))
    if not found:
        raise UserError(
            f"{reader.names}: no finished cell is of a step of a training; kerple_eval.Watch and "
            "kerple-eval train --watch write such runs"
        )
    return [_picture(f"{name}, {protocol}", curves) for (name, protocol), curves in found.items()]


def _picture(title: str, points: dict[tuple[str, int], list[Point]]) -> Picture:
    found = []
    for index, ((name, length), of_steps) in enumerate(points.items()):
        steps, values, bands = zip(*sorted(of_steps, key=lambda point: point[0]), strict=True)
        lower, upper = sums.columns(bands)
        found.append(Curve(f"{name} at {length}", index, steps, values, lower, upper))
    found.sort(key=lambda one: one.y[-1], reverse=True)

    def paint(panel: Axes) -> None:
        curves(panel, found)
        value_axis(panel)
        panel.set_ylabel("perplexity")
        panel.set_xlabel("training step")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    words = "; ".join(f"{one.label} {trend(one.x, one.y, 'at step')}" for one in found)
    banded = any(one.lower for one in found)
    return Picture(title, paint, f"Perplexity against training steps: {words}.", sums.BANDS if banded else "")
