"""The longest pass by blocks of 1024 targets: ``blocks.md`` and ``blocks.png`` from the run's cells.

    python results/smollm2/blocks.py [DIR]

A block's mean loss is in nats per target. Targets are the same for both models: differences are paired.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from kerple_eval.records.cell import Cell
from kerple_eval.records.run import open_run
from kerple_eval.reports.figures.style import Curve, curves, mark_trained, panels, save

BLOCK = 1024


def main(folder: Path) -> None:
    cells = [cell for cell in open_run(folder).cells() if isinstance(cell, Cell)]
    longest = max(cell.key.length for cell in cells)
    losses = {
        c.key.model: np.concatenate(c.losses).astype(np.float64) for c in cells if c.key.length == longest
    }
    first = np.arange(0, longest, BLOCK)
    means = {model: row.reshape(-1, BLOCK).mean(1) for model, row in losses.items()}
    plain, yarn = means
    lines = [f"| contexts | {plain} | {yarn} | difference |", "|---|---:|---:|---:|"]
    for at, a, b in zip(first, means[plain], means[yarn], strict=True):
        lines.append(f"| {at + 1}..{at + BLOCK} | {a:.3f} | {b:.3f} | {a - b:+.3f} |")
    (folder / "blocks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    figure, (axes,) = panels(1)
    middle = (first + BLOCK / 2).tolist()
    curves(axes, [Curve(model, i, middle, mean.tolist()) for i, (model, mean) in enumerate(means.items())])
    mark_trained(axes, {n for n in [cells[0].header.train_length] if n is not None})
    axes.set_xlabel(f"context (tokens seen), blocks of {BLOCK}")
    axes.set_ylabel("mean loss (nats per target)")
    axes.set_title(f"{cells[0].key.task}, {cells[0].key.protocol}, L = {longest}", fontsize=9, loc="left")
    axes.legend(fontsize=7.5, frameon=False, loc="lower left")
    save(figure, folder / "blocks.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
