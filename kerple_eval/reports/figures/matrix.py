"""What a scheme adds to the scores of a head, as a causal heat map (KERPLE, figure 1).

Query positions go down, key positions across; what a query does not see (the future, keys out of a
window) is white. A panel a model and head, all with one colour scale, which ends 10 below the highest
value (e^-10 of the attention; the bar's arrow says that there is more). Queries under the line stand past
the trained length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from kerple_eval.reports.figures.style import COLORS, look, panels, save, wrapped
from kerple_eval.schemes.kernel_view import Array, KernelView, title
from kerple_eval.types import UserError

HOOKS = ("kernel", "bias")
PANELS = ((4, (1.75, 1.85)), (2, (2.8, 2.4)), (1, (3.5, 2.9)))  # how many across, inches
DEFAULT, UNKNOWN, MOST = 1024, 128, 4096  # positions
EACH = 12  # positions up to which each is named
DEPTH = 10.0


@look()
def make(
    models: Sequence[KernelView], out: Path, *, length: int | None = None, head: int | None = None
) -> None:
    """``length`` positions, unless given twice the trained length and at most 1,024; ``head`` (from 0)."""
    if length is not None and not 2 <= length <= MOST:
        raise UserError(f"--length {length}: a heat map has 2 to {MOST} positions")
    found = [
        (model, h, np.ma.masked_invalid(model.matrix(_positions(model, length), h)))
        for model in models
        for h in (range(model.heads) if head is None else (head,))
    ]
    highest = max(float(values.max()) for _, _, values in found)
    lowest = min(float(values.min()) for _, _, values in found)
    across, size = next(row for row in PANELS if row[0] <= max(1, len(found)))
    figure, axes = panels(len(found), size=size, across=across)
    for (model, h, values), panel in zip(found, axes, strict=True):
        image = _panel(panel, values, max(lowest, highest - DEPTH), highest)
        panel.set_title(f"{wrapped(title(model), 26)}\nhead {h}", fontsize=7.5, loc="left")
        _mark_trained(panel, model.train_length, len(values))
    for panel in axes[::across]:
        panel.set_ylabel("query m", fontsize=7.5)
    for panel in axes[-across:]:
        panel.set_xlabel("key n", fontsize=7.5)
    bar = figure.colorbar(image, ax=axes, extend="min" if lowest < highest - DEPTH else "neither", aspect=30)
    bar.set_label("added to the score", fontsize=7.5)
    bar.ax.tick_params(labelsize=7)
    save(figure, out)


def _positions(model: KernelView, length: int | None) -> int:
    if length is not None:
        return length
    return UNKNOWN if model.train_length is None else max(2, min(DEFAULT, 2 * model.train_length))


def _panel(panel: Axes, values: Array, lowest: float, highest: float) -> AxesImage:
    n = len(values)
    image = panel.imshow(
        values, cmap="viridis", vmin=lowest, vmax=highest, interpolation="nearest", extent=(0, n, n, 0)
    )
    for axis in (panel.xaxis, panel.yaxis):
        if n <= EACH:
            axis.set_ticks([i + 0.5 for i in range(n)], [str(i) for i in range(n)])
        else:
            axis.set_ticks([0, n // 2, n])
    panel.tick_params(labelsize=6.5, length=2)
    return image


def _mark_trained(panel: Axes, trained: int | None, length: int) -> None:
    if trained is not None and trained < length:
        panel.plot([0, trained], [trained, trained], color=COLORS[1], linewidth=1.0)
