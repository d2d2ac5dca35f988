"""alibi against kerple-log seed by seed, as if one of each had been trained: ``pairs.md`` from the cells.

    python results/zoo/pairs.py [DIR]

Differences in nats per target on the same targets, with 95 % intervals over documents.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kerple_eval.records.cell import Cell
from kerple_eval.records.run import open_run
from kerple_eval.stats.documents import paired_sums, scored
from kerple_eval.stats.intervals import ratio_interval


def main(folder: Path) -> None:
    cells = {
        (cell.key.model, cell.key.length): scored(cell)
        for cell in open_run(folder).cells()
        if isinstance(cell, Cell) and cell.key.protocol == "full-context"
    }
    lines = ["| seed of both | 512 | 16384 |", "|---|---|---|"]
    for seed in (1, 2, 3):
        line = f"| {seed} "
        for length in (512, 16384):
            pair = (cells[f"{scheme}-s{seed}", length] for scheme in ("alibi", "kerple-log"))
            found = ratio_interval(*paired_sums(*pair))
            line += f"| {found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}] "
        lines.append(line + "|")
    (folder / "pairs.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
