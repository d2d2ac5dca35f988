"""``results/*``, of this layout and the last release's: every run opens, and gives the tables beside it."""

from __future__ import annotations

import json
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
    "smollm2/methods/table.md": ["table", "smollm2/methods", "--format", "markdown"],
    "smollm2/told.md": ["answers", "smollm2/told", "--format", "markdown"],
    "zoo/table.md": ["table", "zoo", "--over-seeds", "--format", "markdown"],
    "zoo/table.tex": ["table", "zoo", "--over-seeds", "--format", "latex"],
}


def test_every_run_opens_and_says_whether_its_losses_are_verified() -> None:
    """Cells written by 0.1.0 have no checksums."""
    assert len(RUNS) >= 5
    cells = dict.fromkeys((1, 2), 0)
    for folder in RUNS:
        version = json.loads((folder / "run.json").read_text(encoding="utf-8"))["schema_version"]
        run = open_run(folder)
        assert run.keys()
        for cell in run.cells():
            assert isinstance(cell, Cell)
            assert (cell.header.verified is False) == (version == 1)
            cells[version] += 1
    assert cells[1] == 20
    assert cells[2] >= 19


def rows(text: str) -> list[str]:
    """Titles and rows; notes under a table are in words that a release may change."""
    return [line for line in text.splitlines() if line and not line.startswith("* ")]


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_the_committed_ones(name: str, invoke: Cli) -> None:
    command, folder, *options = TABLES[name]
    done = invoke(command, str(RESULTS / folder), *options)
    assert done.exit_code == 0
    assert rows(done.stdout) == rows((RESULTS / name).read_text(encoding="utf-8"))
