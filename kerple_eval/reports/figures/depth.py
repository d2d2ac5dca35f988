"""Heat maps of answers by length and depth: exact match beside loss, one row of panels a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from kerple_eval.records.reader import RunReader
from kerple_eval.reports.figures.style import SMALL, Picture, compose, save
from kerple_eval.stats.answer_grids import AnswerGrid, read_answers
from kerple_eval.stats.answers import by_depth, share

MOST_WRITTEN = 40  # numbers are written into the tiles of a panel up to so many
Values = NDArray[np.float64]


def make(folders: Sequence[str | Path], out: Path) -> None:
    """Length across, depth down (0 at the top, the document's beginning); no tile where there is no cell.

    Exact match runs from 0 to 100 %; losses (nats per target) share one scale per task.
    """
    save(compose(pictures(RunReader(folders))), out)


def pictures(reader: RunReader) -> list[Picture]:
    """Two a task and model; refused where no run has a finished cell that scored answers."""
    found = []
    for grid in read_answers(reader):
        every = {model: _values(grid, model) for model in grid.models}
        most = max(float(np.nanmax(v)) for _, v in every.values() if np.isfinite(v).any())
        for model, (exact, losses) in every.items():
            trained = grid.trained[model]
            name = f"{grid.task}, {model}" + (f", trained at {trained}" if trained else "")
            words = _words(grid, model)
            paint = partial(_tiles, grid=grid, values=100 * exact, most=100.0, colors="cividis")
            found.append(Picture(f"{name}: exact match (%)", paint, words))
            paint = partial(_tiles, grid=grid, values=losses, most=most, colors="cividis_r")
            found.append(Picture(f"{name}: loss (nats per target)", paint, words))
    return found


def _words(grid: AnswerGrid, model: str) -> str:
    parts = []
    for length in grid.lengths:
        group = grid.cells.get((model, length))
        if group is None:
            parts.append(f"none at {length}")
            continue
        one = share(group)
        parts.append(f"{one.exact} of {one.documents} at {length} (mean loss {one.loss:.3g} nats per target)")
    return f"Heat map of {grid.task} by length and depth for {model}. Exact matches: {'; '.join(parts)}."


def _values(grid: AnswerGrid, model: str) -> tuple[Values, Values]:
    """Exact match (0..1) and loss, ``[depths, lengths]``; NaN, which is not drawn, where there is no cell."""
    exact = np.full((len(grid.depths), len(grid.lengths)), np.nan)
    losses = exact.copy()
    for column, length in enumerate(grid.lengths):
        for depth, part in by_depth(grid.cells.get((model, length), [])).items():
            row = grid.depths.index(depth)
            exact[row, column], losses[row, column] = part.exact_match, part.loss
    return exact, losses


def _tiles(panel: Axes, *, grid: AnswerGrid, values: Values, most: float, colors: str) -> None:
    """Values from 0 to ``most`` in ``colors``, chosen so that good is light."""
    panel.set_facecolor("0.85")
    image = panel.imshow(
        np.ma.masked_invalid(values), cmap=colors, vmin=0, vmax=most, aspect="auto", origin="upper"
    )
    panel.set_xticks(range(len(grid.lengths)), [str(n) for n in grid.lengths])
    step = max(1, -(-len(grid.depths) // 11))
    shown = range(0, len(grid.depths), step)
    panel.set_yticks(list(shown), [f"{100 * grid.depths[i]:.0f} %" for i in shown])
    panel.set_xlabel("length L (tokens)")
    panel.set_ylabel("depth")
    panel.figure.colorbar(image, ax=panel, pad=0.02).ax.tick_params(labelsize=SMALL)
    if values.size <= MOST_WRITTEN:
        _write(panel, values, mpl.colors.Normalize(0, most), mpl.colormaps[colors])


def _write(panel: Axes, values: Values, norm: mpl.colors.Normalize, colors: mpl.colors.Colormap) -> None:
    """Each tile's number on it, in black or white, whichever is read better."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = colors(float(norm(value)))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            panel.text(
                column, row, f"{value:.3g}", ha="center", va="center", fontsize=SMALL,
                color="white" if dark else "black",
            )  # fmt: skip
