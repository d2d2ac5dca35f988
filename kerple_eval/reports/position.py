"""Loss against context: how each model's loss changes as it sees more (KERPLE figures 5 and 7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kerple_eval import stats
from kerple_eval.cells import Cell, read_cell
from kerple_eval.records import Run, open_run, own_label
from kerple_eval.reports.style import length_axis, line_style, mark_trained, panels, save
from kerple_eval.types import CellKey, UserError

BINS_PER_DOUBLING = 2


def bin_edges(longest: int) -> NDArray[np.int64]:
    """Edges of context bins: single tokens first, then two a doubling, up to ``longest``."""
    powers = np.arange(0, np.log2(longest + 1) + 1, 1 / BINS_PER_DOUBLING)
    edges = np.unique(np.round(2.0**powers).astype(np.int64))
    return np.append(edges[edges <= longest / 2 ** (0.5 / BINS_PER_DOUBLING)], longest + 1)


def draw(folders: Sequence[str | Path], out: Path) -> None:
    """One panel a (task, protocol), each at its longest length; mean loss in nats per target."""
    runs = [open_run(folder) for folder in folders]
    groups = _longest(runs)
    if not groups:
        raise UserError(
            "no finished cell whose contexts vary; run --protocol full-context, sliding-window or prefix"
        )
    figure, axes = panels(len(groups))
    names: list[str] = []
    for ((task, protocol), members), panel in zip(groups.items(), axes, strict=True):
        trained, drawn = set(), []
        owners: dict[str, str] = {}
        edges = bin_edges(members[0][1].length)
        for run, key in members:
            cell = read_cell(run.folder, key)
            if not isinstance(cell, Cell):
                continue
            means, counts = stats.loss_by_context(cell.windows, cell.losses, edges)
            centre = np.sqrt(edges[:-1] * (edges[1:] - 1.0))
            known = counts > 0
            label = own_label(key.model, run.folder, owners)
            if label not in names:
                names.append(label)
            drawn.append((means[known][-1], label, centre[known], means[known]))
            if cell.header["train_length"] is not None:
                trained.add(int(cell.header["train_length"]))
        for _, model, x, y in sorted(drawn, key=lambda curve: -curve[0]):
            panel.plot(x, y, label=model, linewidth=1.2, **line_style(names.index(model)))  # type: ignore[arg-type]
        longest = members[0][1].length
        ticks = [2**i for i in range(0, int(np.log2(longest)) + 1, 2)]
        length_axis(panel, ticks, "context (tokens seen)")
        mark_trained(panel, trained)
        panel.set_ylabel("mean loss (nats per target)")
        panel.set_title(f"{task}, {protocol}, L = {longest}", fontsize=9, loc="left")
        panel.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, out)


def drawable(folders: Sequence[str | Path]) -> bool:
    """Whether any finished cell has contexts that vary."""
    return bool(_longest([open_run(folder) for folder in folders]))


def _longest(runs: Sequence[Run]) -> dict[tuple[str, str], list[tuple[Run, CellKey]]]:
    """Finished cells of the longest length each (task, protocol) has.

    Only where contexts vary: a protocol that scores nothing below half its length has no curve.
    """
    groups: dict[tuple[str, str], list[tuple[Run, CellKey]]] = {}
    for run in runs:
        for cell in run.cells():
            if isinstance(cell, Cell) and stats.contexts(cell.windows).min() <= cell.key.length // 2:
                members = groups.setdefault((cell.key.task, cell.key.protocol), [])
                members.append((run, cell.key))
    return {
        group: [(r, k) for r, k in members if k.length == max(key.length for _, key in members)]
        for group, members in groups.items()
    }
