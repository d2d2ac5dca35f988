"""Divergence from a reference against length, and against context at the longest length.

Mean KL divergence over targets, and its 95 % interval over documents as a band.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from kerple_eval.records.reader import RunReader
from kerple_eval.reports import sums
from kerple_eval.reports.figures.style import Curve, Picture, compose, curves, length_axis, save, value_axis
from kerple_eval.reports.words import trend
from kerple_eval.stats.by_context import BINS_PER_DOUBLING, Binned
from kerple_eval.stats.divergence import read_divergences, summarise
from kerple_eval.types import UserError

LABEL = "KL divergence (nats per target)"
Point = tuple[int, float, sums.Band | None]  # length, mean, its interval


def make(
    folders: Sequence[str | Path], out: Path, *, task: str | None = None, protocol: str | None = None
) -> None:
    """Panels of a (task, protocol, reference): against length, where there are several; against context."""
    made = pictures(RunReader(folders), task=task, protocol=protocol)
    if not made:
        raise UserError(
            "one length, and no context below half of it: nothing to draw; see table --divergence"
        )
    save(compose(made), out)


def pictures(reader: RunReader, *, task: str | None = None, protocol: str | None = None) -> list[Picture]:
    """Empty where cells are of one length and score nothing below half of it."""
    points: dict[tuple[str, str, str], dict[str, list[Point]]] = {}
    longest: dict[tuple[str, str, str], list[Binned]] = {}
    for found in read_divergences(reader, task, protocol):
        name = (found.key.task, found.key.protocol, found.reference)
        summary = summarise(found)
        band = None if summary.interval is None else (summary.interval.low, summary.interval.high)
        of_model = points.setdefault(name, {}).setdefault(found.label, [])
        of_model.append((found.key.length, summary.mean, band))
        binned = found.binned("divergence", BINS_PER_DOUBLING)
        held = longest.setdefault(name, [])
        if min(binned.edges[binned.drawn], default=binned.length) <= binned.length // 2 and all(
            other.length <= binned.length for other in held
        ):
            longest[name] = [other for other in held if other.length == binned.length] + [binned]
    made = []
    for name, models in points.items():
        title = f"{name[0]}, {name[1]}: from {name[2]}"
        if len({length for of_model in models.values() for length, _, _ in of_model}) > 1:
            made.append(_by_length(title, models))
        if longest[name]:
            made.append(_by_context(title, longest[name], list(models)))
    return made


def _by_length(title: str, models: Mapping[str, Sequence[Point]]) -> Picture:
    found = []
    for index, (label, of_model) in enumerate(models.items()):
        lengths, means, bands = zip(*sorted(of_model, key=lambda point: point[0]), strict=True)
        found.append(Curve(label, index, lengths, means, *sums.columns(bands)))
    ticks = sorted({int(length) for one in found for length in one.x})
    return _picture(title, found, ticks, "length (tokens)", "length")


def _by_context(title: str, members: Sequence[Binned], names: Sequence[str]) -> Picture:
    found = []
    for binned in members:
        x, y, bands = binned.curve()
        found.append(Curve(binned.label, names.index(binned.label), x, y, *sums.columns(bands)))
    longest = members[0].length
    ticks = [2**i for i in range(0, longest.bit_length(), 1 if longest <= 64 else 3)]
    notes = [binned.note for binned in members if binned.note]
    return _picture(f"{title}, L = {longest}", found, ticks, "context (tokens seen)", "context", notes)


def _picture(
    title: str, found: list[Curve], ticks: Sequence[int], axis: str, what: str, notes: Sequence[str] = ()
) -> Picture:  # fmt: skip
    found.sort(key=lambda one: -one.y[-1])

    def paint(panel: Axes) -> None:
        curves(panel, found)
        length_axis(panel, ticks, axis)
        if all(value > 0 for one in found for value in (*one.y, *(one.lower or ()))):
            value_axis(panel)
        panel.set_ylabel(LABEL)

    words = "; ".join(f"{one.label} {trend(one.x, one.y, f'at {what}')}" for one in found)
    bands = [sums.BANDS] if any(c.lower for c in found) else []
    return Picture(title, paint, f"{LABEL} against {what}: {words}.", "; ".join([*bands, *notes]))
