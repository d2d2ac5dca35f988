"""The answers that a finished cell of made documents (passkey, needle, ...) scored. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerple_eval.records.cell import Cell


@dataclass(frozen=True, slots=True)
class Answer:
    """One document: its targets, how many were the argmax, whether all were, mean nats per target."""

    depth: float
    document: str
    targets: int
    hits: int
    exact: bool
    loss: float


def answers(cell: Cell) -> list[Answer]:
    """The documents of a finished cell that scored answers, one window each, in plan order."""
    assert cell.hits is not None
    scored = []
    for number, row, hits in zip(cell.document.tolist(), cell.losses, cell.hits, strict=True):
        entry = cell.header.documents[number]
        mean = math.fsum(row.tolist()) / len(row)
        right = int(hits.sum())
        assert entry.depth is not None
        scored.append(Answer(entry.depth, entry.name, len(row), right, right == len(row), mean))
    return scored
