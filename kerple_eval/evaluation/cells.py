"""What scoring gave of a cell's windows, as the cell that is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kerple_eval.data.documents import TokenDocument
from kerple_eval.evaluation.verify import document_numbers
from kerple_eval.evaluation.worklist import Work
from kerple_eval.records.cell import Cell
from kerple_eval.records.divergence import Divergence
from kerple_eval.records.header import FinishedHeader
from kerple_eval.types import Window

Row = NDArray[np.float32]  # of a window [rows, targets]: losses, hits and divergences, as far as asked for


def rows_without_divergence(task: Work) -> int:
    """Losses, and hits where the protocol scores answers."""
    return 1 + task.plan.protocol.scores_answers


def cell_of(task: Work, header: FinishedHeader, rows: Sequence[Row]) -> Cell:
    """``rows``: of each window of the task."""
    base = rows_without_divergence(task)
    return Cell(
        key=task.key,
        header=header,
        document=np.array(document_numbers(task), dtype=np.int64),
        windows=[window for _, window in task.windows],
        losses=[row[0] for row in rows],
        byte_counts=_byte_counts(task.documents, task.windows),
        hits=[row[1] > 0 for row in rows] if task.plan.protocol.scores_answers else None,
        divergence=Divergence.of_rows([row[base:] for row in rows]) if len(rows[0]) > base else None,
    )


def _byte_counts(
    documents: Sequence[TokenDocument], windows: Sequence[tuple[int, Window]]
) -> list[int] | None:
    counts = [documents[index].byte_count(window) for index, window in windows]
    return None if None in counts else [count for count in counts if count is not None]
