"""Run directories as a report reads them: each file of a cell once, however many tables ask for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from kerple_eval.records.cell import Cell, FailedCell
from kerple_eval.records.run import Run, open_run
from kerple_eval.support.files import is_folder
from kerple_eval.types import CellKey, UserError


class RunReader:
    """The runs of one report. A folder given twice, however spelled, is one run.

    ``keep``: cells stay in memory once they are read (4 bytes a target), for a page, whose sections ask
    for the same ones. A report that reduces cells one by one needs none of them again.
    """

    def __init__(self, folders: Sequence[str | Path], *, keep: bool = False) -> None:
        if not folders:
            raise UserError("no run directory given")
        spelled: dict[str, str] = {}
        for folder in map(str, folders):
            spelled.setdefault(os.path.realpath(folder) if is_folder(Path(folder)) else folder, folder)
        self.folders = tuple(spelled.values())
        self.keep = keep
        self._cells: dict[tuple[Path, CellKey], Cell | FailedCell | None] = {}

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Opened at the first use, in the order given."""
        return tuple(map(open_run, self.folders))

    @cached_property
    def _by_folder(self) -> dict[Path, Run]:
        return {run.folder: run for run in self.runs}

    def cell(self, folder: Path, key: CellKey) -> Cell | FailedCell | None:
        """The cell of the run in ``folder``; None where it has not been run."""
        name = (folder, key)
        if name in self._cells:
            return self._cells[name]
        cell = self._by_folder[folder].cell(key)
        if self.keep:
            self._cells[name] = cell
        return cell

    def cells(
        self, *, task: str | None = None, protocol: str | None = None
    ) -> Iterator[tuple[Run, Cell | FailedCell]]:
        """The cells that have been run, of one task or protocol where given; in the summaries' order."""
        for run in self.runs:
            keys = run.keys()
            for key in keys:
                if task not in (None, key.task) or protocol not in (None, key.protocol):
                    continue
                cell = self.cell(run.folder, key)
                if cell is not None:
                    yield run, cell

    @property
    def names(self) -> str:
        """The folders, for a message."""
        return ", ".join(self.folders)
