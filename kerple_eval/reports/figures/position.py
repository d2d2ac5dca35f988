"""Loss against context: how each model's loss changes as it sees more (KERPLE figures 5 and 7).

Losses of one length, binned by context (tokens the model saw). A windowed model (``NAME,window=512``)
is the figures' baseline: where a curve runs along it, the model makes nothing of what is further away.
Bands are 95 % intervals over documents, bin by bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.reductions import contexts, perplexity
from kerple_eval.records.run import own_label
from kerple_eval.reports import sums
from kerple_eval.reports.figures.style import (
    Curve,
    Picture,
    compose,
    curves,
    length_axis,
    mark_trained,
    save,
    value_axis,
)
from kerple_eval.reports.grid import VALUES
from kerple_eval.reports.words import trend
from kerple_eval.stats.by_context import Binned, by_context
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError


def make(
    folders: Sequence[str | Path], out: Path, *, length: int | None = None, value: str = "nll",
    task: str | None = None, protocol: str | None = None,
) -> None:  # fmt: skip
    """One panel a (task, protocol), at ``length`` or its longest; ``value`` is nll or ppl."""
    made = pictures(RunReader(folders), length=length, value=value, task=task, protocol=protocol)
    if not made:
        at = "" if length is None else f" at length {length}"
        raise UserError(
            f"no finished cell{at} whose contexts vary; run --protocol full-context, sliding-window or prefix"
        )
    save(compose(made), out)


def pictures(
    reader: RunReader, *, length: int | None = None, value: str = "nll",
    task: str | None = None, protocol: str | None = None,
) -> list[Picture]:  # fmt: skip
    """Empty where no finished cell's contexts vary."""
    if value not in ("nll", "ppl"):
        raise unknown("value", value, ("nll", "ppl"))
    groups = _read(reader, length, task, protocol)
    names = list(dict.fromkeys(binned.label for members in groups.values() for binned in members))
    return [_picture(name, members, names, value) for name, members in groups.items()]


def _read(
    reader: RunReader, length: int | None, task: str | None, protocol: str | None
) -> dict[tuple[str, str], list[Binned]]:
    """Finished cells of one length a (task, protocol).

    Only where contexts vary: a protocol that scores nothing below half its length has no curve.
    """
    groups: dict[tuple[str, str], list[Binned]] = {}
    owners: dict[tuple[str, str], dict[str, str]] = {}
    keys = [key for run in reader.runs for key in run.keys()]  # noqa: SIM118 - no mapping's
    for what, wanted in (("task", task), ("protocol", protocol)):
        known = dict.fromkeys(getattr(key, what) for key in keys)
        if wanted is not None and wanted not in known:
            raise unknown(what, wanted, known)
    for run, cell in reader.cells(task=task, protocol=protocol):
        name = (cell.key.task, cell.key.protocol)
        label = own_label(cell.key.model, run.folder, owners.setdefault(name, {}))
        if length not in (None, cell.key.length) or not isinstance(cell, Cell):
            continue
        members = groups.setdefault(name, [])
        if members and length is None and cell.key.length < members[0].length:
            continue
        seen = contexts(cell.windows)
        if not 0 < min(seen[seen > 0], default=0) <= cell.key.length // 2:
            continue
        members[:] = [m for m in members if m.length == cell.key.length] + [
            by_context(cell, label, cell.losses)
        ]
    return {name: members for name, members in groups.items() if members}


def _picture(name: tuple[str, str], members: Sequence[Binned], names: list[str], value: str) -> Picture:
    found, left_out = [], []
    for binned in members:
        points = list(zip(*binned.curve(), strict=True))
        if value == "ppl":
            points = [(x, ppl, _exp(band)) for x, y, band in points if (ppl := perplexity(y)) is not None]
        if (beyond := len(binned.drawn) - len(points)) > 0:
            left_out.append(f"{binned.label} ({beyond} of {len(binned.drawn)} points)")
        if points:
            x, y, bands = zip(*points, strict=True)
            found.append(Curve(binned.label, names.index(binned.label), x, y, *sums.columns(bands)))
    found.sort(key=lambda one: -one.y[-1])
    longest = members[0].length
    label = "mean loss (nats per target)" if value == "nll" else VALUES[value]

    def paint(panel: Axes) -> None:
        curves(panel, found)
        step = 1 if longest <= 64 else 2 if longest <= 1024 else 3
        length_axis(panel, [2**i for i in range(0, longest.bit_length(), step)], "context (tokens seen)")
        if value == "ppl":
            value_axis(panel)
        mark_trained(panel, {m.trained for m in members if m.trained is not None and m.trained <= longest})
        panel.set_ylabel(label)

    descriptions = "; ".join(f"{one.label} {trend(one.x, one.y, 'at context')}" for one in found)
    words = f"{label} against context, windows of {longest} tokens".capitalize()
    words += f". From the highest curve at its end to the lowest: {descriptions}."
    notes = [sums.BANDS] if any(one.lower for one in found) else []
    notes += [binned.note for binned in members if binned.note]
    title = f"{name[0]}, {name[1]}, L = {longest}"
    if left_out:
        title += f"; left out, beyond the largest number: {', '.join(left_out)}"
    return Picture(title, paint, words, "; ".join(notes))


def _exp(band: sums.Band | None) -> sums.Band | None:
    """The interval of the perplexity; None where its end exceeds the largest float."""
    low, high = (None, None) if band is None else map(perplexity, band)
    return None if low is None or high is None else (low, high)
