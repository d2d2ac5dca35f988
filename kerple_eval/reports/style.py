"""One look for every figure: colour-blind safe colours, markers, sizes at paper column width."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

from kerple_eval.files import write_atomically
from kerple_eval.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (yellow left out: too pale on white), then the same dashed.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANEL = (4.6, 3.4)  # inches
COLUMN = (3.5, 2.3)  # a panel of a paper's column; two stand side by side
FORMATS = ("png", "pdf", "svg")


def line_style(index: int) -> dict[str, str]:
    """Colour, marker and dash of the index-th model; repeats dashed after seven."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLORS) % len(DASHES)],
    }


def panels(
    count: int, *, size: tuple[float, float] = PANEL, across: int = 3
) -> tuple[Figure, Sequence[Axes]]:
    """A figure with ``count`` panels of ``size`` (inches), ``across`` a row, without a display."""
    from matplotlib.figure import Figure as _Figure  # noqa: PLC0415

    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    mpl.rcParams.update({"svg.fonttype": "none", "pdf.fonttype": 42, "lines.markersize": 4.5})
    columns = min(count, across)
    rows = -(-count // columns)
    figure = _Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def length_axis(axes: Axes, lengths: Sequence[int], label: str) -> None:
    """Base-2 logarithmic axis with the lengths themselves as ticks."""
    axes.set_xscale("log", base=2)
    close = any(b < 1.5 * a for a, b in itertools.pairwise(lengths))  # labels would touch
    axes.set_xticks(lengths, [str(length) for length in lengths], rotation=45 if close else 0)
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set_xlabel(label)


def distance_axis(axes: Axes, longest: int) -> None:
    """Distances 1 to ``longest`` on a logarithmic axis, every third power of two named."""
    ticks = [8**i for i in range(longest.bit_length()) if 8**i <= longest]
    length_axis(axes, ticks, "distance |m − n| (tokens)")
    axes.tick_params(labelsize=8)
    axes.set_xlim(1, longest)


def mark_trained(axes: Axes, lengths: set[int]) -> None:
    for length in sorted(lengths):
        axes.axvline(length, color="0.6", linestyle=(0, (4, 3)), linewidth=0.9, zorder=0)
        axes.annotate(
            "trained", (length, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -2),
            textcoords="offset points", fontsize=7, color="0.4", va="top",
        )  # fmt: skip


def save(figure: Figure, out: Path) -> None:
    """Write the figure in the format its name ends with."""
    kind = out.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise UserError(f"{out}: a figure's name must end with .png, .pdf or .svg")
    buffer = io.BytesIO()
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    write_atomically(out, buffer.getvalue())
