"""Extrapolation curves: perplexity against length, both logarithmic, the trained length marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from kerple_eval.reports.grid import VALUES, Grid, read_grids
from kerple_eval.reports.style import length_axis, line_style, mark_trained, panels, save

LEAST_SPAN = 1.1


def draw(folders: Sequence[str | Path], out: Path) -> None:
    """One panel a (task, protocol); legend in the order of the curves at the longest length."""
    grids = read_grids(folders)
    names = list(dict.fromkeys(model for grid in grids for model in grid.models))
    figure, axes = panels(len(grids))
    for grid, panel in zip(grids, axes, strict=True):
        value = grid.values()[0]
        order = sorted(grid.models, key=lambda model: -_last(grid, model, value))
        for model in order:
            points = [
                (length, entry.row[value])
                for length in grid.lengths
                if (entry := grid.entries.get((model, length))) and entry.row[value] is not None
            ]
            if points:
                x, y = zip(*points, strict=True)
                panel.plot(x, y, label=model, linewidth=1.4, **line_style(names.index(model)))  # type: ignore[arg-type]
        _value_axis(panel)
        panel.set_ylabel(VALUES[value])
        length_axis(panel, grid.lengths, "length L (tokens)")
        mark_trained(panel, {t for m in grid.models if (t := grid.trained(m)) in grid.lengths and t})
        panel.set_title(f"{grid.task}, {grid.protocol}", fontsize=9, loc="left")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, out)


def _last(grid: Grid, model: str, value: str) -> float:
    """The curve's last value; a curve without one comes last in the legend."""
    for length in reversed(grid.lengths):
        entry = grid.entries.get((model, length))
        if entry is not None and entry.row[value] is not None:
            return float(entry.row[value])
    return float("-inf")


def _value_axis(panel: Axes) -> None:
    """Logarithmic, at least 10 % high (so that a ripple looks like one), few readable ticks."""
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    if high / low < LEAST_SPAN:
        middle = (low * high) ** 0.5
        low, high = middle / LEAST_SPAN**0.5, middle * LEAST_SPAN**0.5
        panel.set_ylim(low, high)
    if high / low < 3:
        panel.yaxis.set_major_locator(MaxNLocator(5))
    else:
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
