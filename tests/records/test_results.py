"""``results/*`` of the last release, layout version 1: every run opens, and gives the tables beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerple_eval.records.cell import Cell
from kerple_eval.records.run import open_run
from tests.helpers.command import Cli

RESULTS = Path(__file__).resolve().parents[2] / "results"
RUNS = sorted(path.parent for path in RESULTS.rglob("run.json"))

#: Committed table -> the command that wrote it (the run.sh beside it, or DESIGN's demo).
TABLES = {
    "demo/table.txt": ["table", "demo"],
    "smollm2/table.md": ["table", "smollm2", "--format", "markdown"],
    "smollm2/told.md": ["answers", "smollm2/told", "--format", "markdown"],
    "zoo/table.md": ["table", "zoo", "--over-seeds", "--format", "markdown"],
    "zoo/table.tex": ["table", "zoo", "--over-seeds", "--format", "latex"],
}


def test_every_run_opens_and_its_losses_are_marked_as_not_verified() -> None:
    assert len(RUNS) >= 4
    cells = 0
    for folder in RUNS:
        run = open_run(folder)
        assert run.keys()
        for cell in run.cells():
            assert isinstance(cell, Cell)
            assert cell.header.verified is False  # written by 0.1.0, without checksums
            cells += 1
    assert cells == 20


def rows(text: str) -> list[str]:
    """Titles and rows; notes under a table are in words that a release may change."""
    return [line for line in text.splitlines() if line and not line.startswith("* ")]


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_the_release(name: str, invoke: Cli) -> None:
    command, folder, *options = TABLES[name]
    done = invoke(command, str(RESULTS / folder), *options)
    assert done.exit_code == 0
    assert rows(done.stdout) == rows((RESULTS / name).read_text(encoding="utf-8"))
