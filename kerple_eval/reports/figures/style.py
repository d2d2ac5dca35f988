"""One look for every figure: colour-blind safe colours, markers, sizes at paper column width."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from PIL import Image

from kerple_eval.reports import escapes
from kerple_eval.support.files import write_output
from kerple_eval.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (yellow left out: too pale on white), then the same dashed.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANEL = (3.3, 2.3)  # inches: a paper's column; two panels are its text width
WORDS, SMALL = 7.5, 6.5  # points: titles and axes; legends and notes
LONGEST_BESIDE = 15  # characters of the longest label that leave room for a legend beside the curves
MOST_BESIDE = 9  # labels that are no higher than the curves they stand beside
LEGEND_ROW = 0.14  # inches
LEAST_SPAN = 1.1  # of a logarithmic axis of values
FIGURE_FORMATS = ("png", "pdf", "svg")


@dataclass(frozen=True)
class Picture:
    """One panel: how to paint it, and what it shows in words computed from the same numbers."""

    title: str
    paint: Callable[[Axes], None]
    words: str  # for those who cannot see it
    note: str = ""  # beside it: what the bands are, what was left out


@dataclass(frozen=True)
class Curve:
    """One model's: ``index`` decides its look, ``lower`` and ``upper`` its band (NaN: none there).

    A mark at ``holds_to``, one of ``x``.
    """

    label: str
    index: int
    x: Sequence[float]
    y: Sequence[float]
    lower: Sequence[float] | None = None
    upper: Sequence[float] | None = None
    holds_to: float | None = None  # where it is marked


def line_style(index: int) -> dict[str, str]:
    """Colour, marker and dash of the index-th model; repeats dashed after seven."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLORS) % len(DASHES)],
    }


@contextmanager
def look() -> Iterator[None]:
    """matplotlib's settings of every figure here, as a decorator of what makes, paints or writes one.

    They are what they were when it returns: a notebook's own figures do not change.
    """
    with mpl.rc_context(
        {
            "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "lines.markersize": 3.5,
            "svg.fonttype": "none", "pdf.fonttype": 42,
            "svg.hashsalt": "kerple-eval",  # the same figure is the same file
        }
    ):  # fmt: skip
        yield


@look()
def panels(
    count: int, *, size: tuple[float, float] = PANEL, across: int = 2
) -> tuple[Figure, Sequence[Axes]]:
    """A figure with ``count`` panels of ``size`` (inches), ``across`` a row, without a display."""
    from matplotlib.figure import Figure as _Figure  # noqa: PLC0415

    columns = min(count, across)
    rows = -(-count // columns)
    figure = _Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


@look()
def compose(pictures: Sequence[Picture]) -> Figure:
    """All pictures in one figure, two a row, each with its title and legend."""
    figure, axes = panels(len(pictures))
    for picture, panel in zip(pictures, axes, strict=True):
        panel.tick_params(labelsize=WORDS)
        picture.paint(panel)
        panel.xaxis.label.set_fontsize(WORDS)
        panel.yaxis.label.set_fontsize(WORDS)
        panel.set_title(wrapped(picture.title, 44), fontsize=WORDS, loc="left")
    _legends(figure, axes)
    return figure


def _legends(figure: Figure, axes: Sequence[Axes]) -> None:
    """Beside the curves, in the order they were drawn in; below where labels are long or many.

    Below they are in as many columns, top to bottom, as the panel's width has room for.
    """
    from matplotlib.transforms import ScaledTranslation  # noqa: PLC0415

    found = [panel.get_legend_handles_labels() for panel in axes]
    longest = max((len(label) for _, labels in found for label in labels), default=0)
    most = max((len(labels) for _, labels in found), default=0)
    below = longest > LONGEST_BESIDE or most > MOST_BESIDE
    columns = max(1, int(PANEL[0] / (0.4 + 0.045 * longest))) if below else 1
    if below:
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + -(-len(axes) // 2) * LEGEND_ROW * -(-most // columns))
        figure.draw_without_rendering()  # how far down the labels of the axes reach
    for panel, (handles, labels) in zip(axes, found, strict=True):
        position: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        if below:
            labelled = panel.get_tightbbox() or panel.bbox
            down = ScaledTranslation(0, (labelled.y0 - panel.bbox.y0) / figure.dpi, figure.dpi_scale_trans)
            position = {
                "loc": "upper left",
                "bbox_to_anchor": (-0.15, 0.0),
                "bbox_transform": panel.transAxes + down,
            }
        if handles:
            panel.legend(
                handles,
                labels,
                fontsize=SMALL,
                frameon=False,
                handlelength=1.8,
                borderaxespad=0.3,
                ncols=columns,
                **position,
            )


def plain(text: str) -> str:
    """A label as it stands: no mathematics in it, and not left out of a legend for its underscore."""
    return ("\u200b" if text.startswith("_") else "") + escapes.printable(text).replace("$", r"\$")


def wrapped(text: str, width: int) -> str:
    """:func:`plain` text in lines of ``width`` characters."""
    return "\n".join(map(plain, textwrap.wrap(escapes.printable(text), width, break_on_hyphens=False)))


def curves(axes: Axes, found: Sequence[Curve]) -> None:
    """Drawn in order, each a little thinner than the one before, so that none hides behind another."""
    for rank, one in enumerate(found):
        look: dict[str, Any] = line_style(one.index)
        thin = min(rank, 6)
        axes.plot(
            one.x,
            one.y,
            label=plain(one.label),
            linewidth=1.6 - 0.12 * thin,
            markersize=4.6 - 0.35 * thin,
            **look,
        )
        if one.lower is not None and one.upper is not None:
            axes.fill_between(
                one.x, one.lower, one.upper, color=look["color"], alpha=0.15, linewidth=0, zorder=1
            )
        if one.holds_to is not None:
            y = one.y[list(one.x).index(one.holds_to)]
            axes.plot([one.holds_to], [y], marker="|", markersize=13, color=look["color"], zorder=4)


def length_axis(axes: Axes, lengths: Sequence[int], label: str) -> None:
    """Base-2 logarithmic axis with the lengths themselves as ticks."""
    axes.set_xscale("log", base=2)
    close = any(b < 1.5 * a for a, b in itertools.pairwise(lengths))  # labels would touch
    close |= sum(len(str(length)) for length in lengths) > 22
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if close else {}
    axes.set_xticks(lengths, [str(length) for length in lengths], **slanted)
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set_xlabel(label)


def value_axis(axes: Axes, named: float | None = None) -> None:
    """Logarithmic, at least 10 % high (so that a ripple looks like one), few readable ticks.

    ``named`` is a value that has a tick in any case.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter  # noqa: PLC0415

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < LEAST_SPAN:
        middle = low**0.5 * high**0.5  # the product could exceed the largest float
        low, high = middle / LEAST_SPAN**0.5, middle * LEAST_SPAN**0.5
        axes.set_ylim(low, high)
    if high / low < 3:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if named is not None:
        apart = (high / low) ** 0.06  # labels nearer than this would touch
        ticks = [float(t) for t in axes.get_yticks() if low <= t <= high]
        axes.set_yticks([named, *(t for t in ticks if max(t / named, named / t) > apart)])


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
            "trained", (length, 1.0), xycoords=("data", "axes fraction"), xytext=(2, 1),
            textcoords="offset points", fontsize=SMALL, color="0.4", va="top",
        )  # fmt: skip


def save(figure: Figure, out: Path) -> None:
    """Write the figure in the format its name ends with."""
    kind = out.suffix.lstrip(".").lower()
    if kind not in FIGURE_FORMATS:
        raise UserError(f"{out}: a figure's name must end with .png, .pdf or .svg")
    write_output(out, rendered(figure, kind))


@look()
def rendered(figure: Figure, kind: str, *, transparent: bool = False) -> bytes:
    """The figure's file in one of ``FIGURE_FORMATS``; a PNG with a palette."""
    buffer = io.BytesIO()
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    figure.savefig(buffer, format=kind, dpi=300, metadata=metadata, transparent=transparent)
    return with_palette(buffer) if kind == "png" else buffer.getvalue()


def with_palette(png: io.BytesIO) -> bytes:
    """The opaque picture in its 256 best colours: what changes is the shade of smoothed edges."""
    picture, small = Image.open(png), io.BytesIO()
    colours = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(small, "png", optimize=True, dpi=picture.info["dpi"])
    return small.getvalue()
