"""Heat maps of answers by length and depth: exact match beside loss, one row of panels a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from kerple_eval.reports.style import COLUMN, panels, save
from kerple_eval.stats.answer_grids import AnswerGrid, read_answers
from kerple_eval.stats.answers import by_depth

MOST_WRITTEN = 40  # numbers are written into the tiles of a panel up to so many
Values = NDArray[np.float64]


def draw(folders: Sequence[str | Path], out: Path) -> None:
    """Length across, depth down (0 at the top, the document's beginning); no tile where there is no cell.

    Exact match runs from 0 to 100 %; losses (nats per target) share one scale a task.
    """
    grids = read_answers(folders)
    rows = [(grid, model) for grid in grids for model in grid.models]
    figure, axes = panels(2 * len(rows), size=(COLUMN[0], COLUMN[1] + 0.3), across=2)
    for number, (grid, model) in enumerate(rows):
        exact, losses = _values(grid, model)
        trained = grid.trained[model]
        name = f"{grid.task}, {model}" + (f", trained at {trained}" if trained else "")
        finite = [v for m in grid.models for v in _values(grid, m)[1].flatten() if np.isfinite(v)]
        left, right = axes[2 * number], axes[2 * number + 1]
        _tiles(left, grid, 100 * exact, 100.0, "cividis")
        _tiles(right, grid, losses, max(finite), "cividis_r")
        left.set_title(f"{name}\nexact match (%)", fontsize=8, loc="left")
        right.set_title("\nloss (nats per target)", fontsize=8, loc="left")
    save(figure, out)


def _values(grid: AnswerGrid, model: str) -> tuple[Values, Values]:
    """Exact match (0..1) and loss, ``[depths, lengths]``; NaN, which is not drawn, where there is no cell."""
    exact = np.full((len(grid.depths), len(grid.lengths)), np.nan)
    losses = exact.copy()
    for column, length in enumerate(grid.lengths):
        for depth, part in by_depth(grid.cells.get((model, length), [])).items():
            row = grid.depths.index(depth)
            exact[row, column], losses[row, column] = part.exact_match, part.loss
    return exact, losses


def _tiles(panel: Axes, grid: AnswerGrid, values: Values, most: float, name: str) -> None:
    """Values from 0 to ``most`` in the colours ``name``, chosen so that good is light."""
    panel.set_facecolor("0.85")
    image = panel.imshow(
        np.ma.masked_invalid(values), cmap=name, vmin=0, vmax=most, aspect="auto", origin="upper"
    )
    panel.set_xticks(range(len(grid.lengths)), [str(n) for n in grid.lengths], fontsize=7.5)
    step = max(1, -(-len(grid.depths) // 11))
    shown = range(0, len(grid.depths), step)
    panel.set_yticks(list(shown), [f"{100 * grid.depths[i]:.0f} %" for i in shown], fontsize=7.5)
    panel.set_xlabel("length L (tokens)")
    panel.set_ylabel("depth")
    figure = panel.figure
    figure.colorbar(image, ax=panel, pad=0.02).ax.tick_params(labelsize=7)
    if values.size <= MOST_WRITTEN:
        _write(panel, values, mpl.colors.Normalize(0, most), mpl.colormaps[name])


def _write(panel: Axes, values: Values, norm: mpl.colors.Normalize, colors: mpl.colors.Colormap) -> None:
    """Each tile's number on it, in black or white, whichever is read better."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = colors(float(norm(value)))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            panel.text(
                column, row, f"{value:.3g}", ha="center", va="center", fontsize=6.5,
                color="white" if dark else "black",
            )  # fmt: skip
