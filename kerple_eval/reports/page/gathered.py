"""What the sections of a page are made from, read once: runs, grids, sums by document, anchors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import Run
from kerple_eval.reports import sums
from kerple_eval.reports.grid import Grid, GridEntry, model_names, read_grids
from kerple_eval.stats.reach import Reaches, read_reach
from kerple_eval.types import UserError

#: The default reference of comparisons.
REFERENCE = "kerple-log"


@dataclass(frozen=True)
class PageCell:
    """A cell of the page: its grid, its label there and its anchor."""

    grid: Grid
    label: str
    length: int
    entry: GridEntry
    anchor: str


@dataclass(frozen=True)
class Gathered:
    reader: RunReader
    grids: Sequence[Grid]
    known: sums.ScoredCells
    reference: str | None  # a model of some grid
    anchors: dict[tuple[str, str, str, int], str] = field(default_factory=dict)
    gain: bool = False  # whether the text that gained and lost is to be read again and shown

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.reader.runs

    def cells(self) -> Iterator[PageCell]:
        """In the order of the tables: by grid, model, length."""
        for grid in self.grids:
            for model in grid.models:
                for length in grid.lengths:
                    if entry := grid.entries.get((model, length)):
                        yield PageCell(
                            grid, model, length, entry, self.anchor(grid.task, grid.protocol, model, length)
                        )

    def anchor(self, task: str, protocol: str, model: str, length: int) -> str:
        """Of the cell's row in the provenance, by its label in the grid; "" where it has not been run."""
        return self.anchors.get((task, protocol, model, length), "")

    def link(self, task: str, protocol: str, model: str, length: int) -> str:
        """The same for tables that name models by the runs' own labels.

        Only labels that one run alone has: of two, the table's and the grid's need not be the same.
        """
        return self.anchor(task, protocol, model, length) if model in self._unshared[task, protocol] else ""

    @cached_property
    def reaches(self) -> Reaches:
        """How far models hold; none where nothing can be compared."""
        try:
            return read_reach(self.reader)
        except UserError:
            return Reaches([], [])

    @cached_property
    def _unshared(self) -> dict[tuple[str, str], set[str]]:
        """Labels of each grid whose model bears the same label in one run alone."""
        found = {}
        for grid in self.grids:
            own = {label: entry.row["model"] for (label, _), entry in grid.entries.items()}
            count = Counter(own.values())
            found[grid.task, grid.protocol] = {label for label, name in own.items() if count[name] == 1}
        return found

    def run_of(self, entry: GridEntry) -> int:
        """The number of an entry's run, from 1."""
        return 1 + [run.folder for run in self.runs].index(entry.folder)


def gather(folders: Sequence[str | Path], against: str | None) -> Gathered:
    """Read everything; ``against`` must be a model of the runs, kerple-log where it is there if None."""
    reader = RunReader(folders, keep=True)
    grids = read_grids(reader)
    names = model_names(grids, against)
    reference = against or (REFERENCE if REFERENCE in names and len(names) > 1 else None)
    found = Gathered(reader, grids, sums.read(reader, grids), reference)
    number = 0
    for grid in grids:
        for model in grid.models:
            for length in grid.lengths:
                if (model, length) in grid.entries:
                    number += 1
                    found.anchors[grid.task, grid.protocol, model, length] = f"cell-{number}"
    return found
