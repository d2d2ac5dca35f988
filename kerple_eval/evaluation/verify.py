"""Whether a finished cell on disk is the cell that a run plans, by what it was computed from.

A cell's file name says its key alone. Its header says the checkpoint, precision, device and first token it
was computed with and the documents, by the hash of their tokens; its rows say the windows. A run goes on
only with cells whose every fact is the plan's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from kerple_eval.evaluation.plan import RunPlan
from kerple_eval.evaluation.worklist import Work
from kerple_eval.protocols.base import Protocol
from kerple_eval.records.cell import Cell, FailedCell
from kerple_eval.records.cell_origin import specification_sha256
from kerple_eval.records.header import CellHeader, DocumentRecord
from kerple_eval.records.run import Run
from kerple_eval.support.differences import differences
from kerple_eval.support.typed_json import to_json
from kerple_eval.types import UserError

#: Facts of a header that may differ from the plan's, or are compared where the cell is read.
_NOT_COMPARED = ("tokens_per_pass", "threads", "specification_sha256", "other")


def planned_header(task: Work, plan: RunPlan, *, tokens_per_pass: int, threads: int) -> CellHeader:
    """What a cell says of itself, finished or failed."""
    about = task.model.description
    rule = task.plan.protocol.reduction
    dtype = task.model.checkpoint.compute_dtype(task.model.dtype)
    return CellHeader(
        scheme=about.scheme,
        seed=about.seed,
        train_length=about.train_length,
        weights_sha256=about.weights_sha256,
        dtype=str(dtype).removeprefix("torch."),
        device=plan.device.type,
        tokens_per_pass=tokens_per_pass,
        threads=threads,
        first_token=task.reading.marker,
        reduction=None if rule == Protocol.reduction else rule,
        specification_sha256=specification_sha256(plan.specification, task.key),
    )


def document_records(task: Work) -> tuple[DocumentRecord, ...]:
    """The documents that the cell's windows are over, in plan order."""
    used = sorted({index for index, _ in task.windows})
    hashes = task.cell.hashes
    return tuple(
        DocumentRecord(d.name, len(d), hashes[index], d.answer, d.depth)
        for index in used
        for d in [task.documents[index]]
    )


def document_numbers(task: Work) -> list[int]:
    """For each window the number of its document among :func:`document_records`."""
    number = {index: n for n, index in enumerate(sorted({index for index, _ in task.windows}))}
    return [number[index] for index, _ in task.windows]


def checked_cells(run: Run, plan: RunPlan, tasks: Iterable[Work]) -> Iterator[Cell | FailedCell]:
    """The cells that a run has on disk, in the summary's order, each the cell that the plan asks for.

    Raises:
        UserError: a cell cannot be read, or the first fact that differs, and what to do.
    """
    planned = {task.key: task for task in tasks}
    for outcome in run.cells():
        if isinstance(outcome, Cell):
            task = planned[outcome.key]
            if plan.precision is not None:  # documents are added until numbers are sure
                names = frozenset(document.name for document in outcome.header.documents)
                task = replace(task, wanted=names)
            _check(outcome, task, plan, run.cell_path(outcome))
        yield outcome


def _check(cell: Cell, task: Work, plan: RunPlan, path: Path) -> None:
    if cell.header.verified is False:
        raise UserError(
            f"{path}: written by kerple-eval before 0.2, without checksums: it can be read but not "
            "continued; choose another --out, or delete the cells to have them computed again"
        )
    planned = planned_header(task, plan, tokens_per_pass=1, threads=1)
    names = [f.name for f in fields(CellHeader) if f.name not in _NOT_COMPARED]
    old: dict[str, Any] = {name: to_json(getattr(cell.header, name)) for name in names}
    new: dict[str, Any] = {name: to_json(getattr(planned, name)) for name in names}
    old["documents"] = to_json(cell.header.documents)
    new["documents"] = to_json(document_records(task))
    different = differences(old, new)
    if different:
        what = different[0].describe("in it", "in the run's plan")
    elif list(cell.windows) != [window for _, window in task.windows] or (
        cell.document.tolist() != document_numbers(task)
    ):
        what = "its windows are not those of the run's plan"
    else:
        return
    raise UserError(
        f"{path}: computed from something else than this run asks for: {what}; delete it to have it "
        "computed again"
    )
