"""Finished cells that scored answers, gathered from runs: one grid per task, models by lengths."""

from __future__ import annotations

from dataclasses import dataclass, field

from kerple_eval.records.answers import Answer, answers
from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import own_label
from kerple_eval.types import UserError


@dataclass
class AnswerGrid:
    """Cells of one task; ``failed`` holds (model, length) of those without numbers."""

    task: str
    models: list[str] = field(default_factory=list)
    cells: dict[tuple[str, int], list[Answer]] = field(default_factory=dict)
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    trained: dict[str, int | None] = field(default_factory=dict)
    hashes: dict[int, set[str]] = field(default_factory=dict)  # of the targets at each length

    @property
    def lengths(self) -> list[int]:
        return sorted({length for _, length in [*self.cells, *self.failed]})

    @property
    def depths(self) -> list[float]:
        return sorted({answer.depth for found in self.cells.values() for answer in found})


def read_answers(reader: RunReader) -> list[AnswerGrid]:
    """Grids of several runs together; where two hold a model of one name, the run's name joins it.

    Raises:
        UserError: none of the runs has a finished cell that scored answers.
    """
    grids: dict[str, AnswerGrid] = {}
    owners: dict[str, dict[str, str]] = {}
    for run, cell in reader.cells(protocol="answer"):
        key = cell.key
        grid = grids.setdefault(key.task, AnswerGrid(key.task))
        label = own_label(key.model, run.folder, owners.setdefault(key.task, {}))
        if label not in grid.models:
            grid.models.append(label)
        grid.trained[label] = cell.header.train_length
        if isinstance(cell, Cell):
            grid.cells[label, key.length] = answers(cell)
            grid.hashes.setdefault(key.length, set()).add(cell.targets_hash)
        else:
            grid.failed[label, key.length] = cell.error
    found = [grid for grid in grids.values() if grid.cells]
    if not found:
        raise UserError(
            f"{reader.names}: no finished cell of a task with answers; run --task passkey, "
            "needle, copy or associative-recall"
        )
    return found
