"""spread: share of targets with a loss of at least x nats, one curve per model, at the longest length."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.reports.catalogue import ReportEntry
from kerple_eval.reports.figures.style import save


def make(folders: Sequence[str | Path], out: Path, *, task: str | None = None) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    cells = [cell for _, cell in RunReader(folders).cells(task=task) if isinstance(cell, Cell)]
    longest = max(cell.key.length for cell in cells)
    for cell in cells:
        if cell.key.length == longest:
            losses = np.sort(np.concatenate(cell.losses))
            axes.step(losses, 1 - np.arange(len(losses)) / len(losses), label=cell.key.model)
    axes.set(xlabel="loss of a target (nats)", ylabel="share with at least that loss", yscale="log")
    axes.legend()
    save(figure, out)


ENTRY = ReportEntry("spread", "kerple_spread:make", "how losses of single targets are spread", "figure")
