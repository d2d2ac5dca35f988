"""Learned kernels against distance, one curve per head (KERPLE, figures 2 to 4).

A panel a model and hook: what a scheme adds to the scaled scores, ``k(D)``, and where it has one the
``weight w(D)`` that multiplies them first. Distances are logarithmic: heads differ near, the question is
far. Kernels are drawn down to -12 on one scale for all panels, since a power kernel's -1e8 would flatten
all else and e^-12 of the attention is nothing; the legend gives each head's value at the far end, so that
what lies below is in the figure as a number. More than 14 heads have no legend: their colours run from the
highest at the far end (dark) to the lowest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kerple_eval.reports.figures.style import (
    COLORS,
    DASHES,
    PANEL,
    distance_axis,
    look,
    mark_trained,
    panels,
    save,
    wrapped,
)
from kerple_eval.schemes.kernel_view import Array, KernelView, title
from kerple_eval.types import UserError

HOOKS = ("kernel", "weight")
LONGEST = 16384  # tokens, unless asked
PER_DOUBLING = 24  # distances drawn
DEPTH = 12.0
NAMED = 2 * len(COLORS)  # heads that get a colour, a dash and a line of the legend each
LABELS = {"kernel": "kernel k(D), added", "weight": "weight w(D), multiplied"}

Panel = tuple[KernelView, str, NDArray[np.int64], Array]


@look()
def make(
    models: Sequence[KernelView], out: Path, *, length: int | None = None, head: int | None = None
) -> None:
    """``length``: distances below it, up to 16,384 unless given; ``head``: that one alone (from 0)."""
    longest = LONGEST if length is None else length - 1
    if longest < 2:
        raise UserError(f"--length {length} leaves no distance to draw; it must be at least 3")
    found: list[Panel] = []
    for model in models:
        if model.window == 1:
            raise UserError(f"{model.label}: a window of 1 leaves no distance to draw; it must be at least 2")
        distances = drawn_distances(longest if model.window is None else min(longest, model.window - 1))
        for hook in HOOKS:
            values = getattr(model, hook)(distances)
            if values is not None:
                found.append((model, hook, distances, values))
    limits = {hook: _limits([values[:, 1:] for _, h, _, values in found if h == hook]) for hook in HOOKS}
    figure, axes = panels(len(found), size=PANEL, across=2)
    for (model, hook, distances, values), panel in zip(found, axes, strict=True):
        panel.set_ylim(limits[hook])
        heads = range(model.heads) if head is None else (head,)
        _curves(panel, distances, values, heads, kernel=hook == "kernel")
        panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 4, 5, 10]))
        distance_axis(panel, longest)
        if model.train_length is not None and model.train_length < longest:
            mark_trained(panel, {model.train_length})
        panel.set_ylabel(LABELS[hook])
        panel.set_title(wrapped(title(model), 44), fontsize=8.5, loc="left")
    save(figure, out)


def drawn_distances(longest: int) -> NDArray[np.int64]:
    """0, 1, 2, ... and on to ``longest``, as far apart as the logarithmic axis lets one see."""
    steps = np.arange(0, np.log2(max(longest, 1)), 1 / PER_DOUBLING)
    return np.unique([0, *np.round(2.0**steps).astype(np.int64).tolist(), longest])


def _limits(values: Sequence[Array]) -> tuple[float, float]:
    """One scale for all panels of a hook, from -12 or the lowest value to the highest, with a margin."""
    if not values:
        return 0.0, 1.0
    highest = max(0.0, *(float(v.max()) for v in values))
    lowest = max(-DEPTH, min(float(v.min()) for v in values))
    span = highest - lowest or 1.0
    return (lowest if lowest == -DEPTH else lowest - 0.04 * span), highest + 0.1 * span


def _curves(
    panel: Axes, distances: NDArray[np.int64], values: Array, heads: Sequence[int], *, kernel: bool
) -> None:
    """Curves from the highest at the far end to the lowest, so that the legend reads as the figure does."""
    named = len(heads) <= NAMED
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(heads)))
    for rank, h in enumerate(sorted(heads, key=lambda h: -values[h, -1])):
        panel.plot(
            distances[1:], values[h, 1:], linewidth=1.2,
            color=COLORS[h % len(COLORS)] if named else shades[rank],
            linestyle=DASHES[h // len(COLORS) % 2] if named else "-",
            label=f"head {h}: {short(float(values[h, -1]))}",
        )  # fmt: skip
    if named:
        panel.legend(
            title=f"k({distances[-1]})" if kernel else f"w({distances[-1]})", title_fontsize=7, fontsize=6.5,
            loc="upper left", bbox_to_anchor=(1.0, 1.03), alignment="left", frameon=False, labelspacing=0.25,
            handlelength=1.6, borderpad=0.2, handletextpad=0.5,
        )  # fmt: skip


def short(value: float) -> str:
    """At most three decimals and about three digits, a power of ten from a million on."""
    if abs(value) < 1e6:
        places = 3 if abs(value) < 1 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{places}f}".replace("-", "−")
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"${mantissa}\\times10^{{{int(exponent)}}}$"
