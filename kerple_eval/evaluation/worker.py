"""The cells of a run, one by one: skips finished ones, isolates failures, rewrites the summary after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kerple_eval.data.documents import TokenDocument
from kerple_eval.evaluation.budget import RunBudget
from kerple_eval.evaluation.plan import PlannedModel, RunPlan
from kerple_eval.evaluation.ranks import ScoreRequest, SingleProcess
from kerple_eval.evaluation.reuse import find
from kerple_eval.evaluation.stopping import StoppingState
from kerple_eval.evaluation.worklist import Work, before, cost, worklist
from kerple_eval.models.base import LanguageModel
from kerple_eval.models.decoder.flex import programs
from kerple_eval.models.scoring import batches
from kerple_eval.protocols.base import Protocol
from kerple_eval.records.cell import Cell, FailedCell, read_cell, write_cell, write_failure
from kerple_eval.records.header import CellHeader, DocumentRecord, FinishedHeader
from kerple_eval.records.run import Run, write_summary
from kerple_eval.types import CellKey, UserError, Window

Losses = list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class RunProgress:
    """What a run tells its watcher: the cell at hand and the share of the run's work behind it."""

    key: CellKey
    cells_done: int
    cells: int
    work_done: float
    work: float
    compiling: bool = False  # FlexAttention meets a shape for the first time: some seconds


class Worker:
    def __init__(
        self, run: Run, plan: RunPlan, on_progress: Callable[[RunProgress], None], team: SingleProcess
    ) -> None:
        self.run = run
        self.team = team
        self.plan = plan
        self.on_progress = on_progress
        self.rows: dict[CellKey, dict[str, Any]] = {}
        self.growth = None if plan.precision is None else StoppingState(plan, plan.precision, run.keys())
        for cell in run.cells():
            self.rows[cell.key] = cell.summary()
            if self.growth is not None and isinstance(cell, Cell):
                self.growth.add(cell)
        self.every = list(worklist(plan))
        self.keys = run.keys()
        self.work_total = self.work_done = 0.0
        self.model: LanguageModel | None = None
        self.loaded: PlannedModel | None = None
        self.budget = RunBudget(run)
        self.compiled: set[tuple[str | None, int, int, int]] = set()

    def work(self) -> None:
        self._write_summary()
        for tasks in self._rounds():
            self.work_total += sum(task.cost for task in tasks)
            for task in tasks:
                self._do(task)
        if self.growth is not None:
            self.growth.write(self.run.folder)

    def _rounds(self) -> Iterator[list[Work]]:
        """Cells to compute: all at once, or look after look where they grow until they are sure."""
        if self.growth is None:
            yield [task for task in self.every if self.rows.get(task.key, {}).get("status") != "ok"]
            return
        for wanted in self.growth.rounds():
            tasks = worklist(self.plan, wanted)
            yield [task for task in tasks if self.growth.needs(task.key, task.names)]

    def _do(self, task: Work) -> None:
        self._tell(task)
        began = time.monotonic()
        behind = self.work_done
        try:
            if self.loaded is not task.model:
                self.model = None  # the last model's memory goes before the next is loaded
                text = self.plan.provenance.models[task.model.label]
                self.model = self.team.load(task.model.checkpoint, text, self.plan.device, self.plan.dtype)
                self.loaded = task.model
                self.budget.settle(self.model, self.plan.longest)
            assert self.model is not None
            earlier = self._earlier(task)
            losses, source = self._losses(task, self.model, earlier)
        except (UserError, ArithmeticError, MemoryError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            failure = FailedCell(
                task.key, CellHeader(**self._facts(task)), f"{type(error).__name__}: {reason}"
            )
            write_failure(self.run.folder, failure)
            self.rows[task.key] = failure.summary()
            if self.growth is not None:
                self.growth.drop(task.key)
        else:
            growth = self.growth
            too_large = self.budget.keep()
            seconds = time.monotonic() - began + ((earlier.header.seconds or 0) if earlier else 0)
            facts = self._facts(task)
            # A checkpoint may fix its own precision (neox: numerics=release).
            facts["dtype"] = str(self.model.dtype).removeprefix("torch.")
            header = FinishedHeader(
                **facts,
                documents=_document_records(task),
                losses_from=source,
                attention=self.model.attention,
                out_of_memory_at=too_large,
                seconds=round(seconds, 3),
                precision=growth.header(task.key.task, len(task.wanted or ())) if growth else None,
            )
            cell = _cell(task, header, losses)
            write_cell(self.run.folder, cell)
            self.rows[task.key] = cell.summary()
            if self.growth is not None:
                self.growth.add(cell)
        self.work_done = behind + task.cost
        self._write_summary()
        self._tell(task)

    def _earlier(self, task: Work) -> Cell | None:
        """The same cell with the documents of an earlier look, where cells grow."""
        return None if self.growth is None else self._finished(task.key)

    def _losses(self, task: Work, model: LanguageModel, earlier: Cell | None) -> tuple[Losses, str]:
        """Losses in plan order and where they come from: cells before this one, and forward passes.

        Where the protocol scores answers, losses and hits, ``[2, targets]`` a window.
        """
        found = find(task, before(task, self.every), self._finished)
        names = [task.documents[index].name for index, _ in task.windows]
        known = {name: iter(rows) for name, rows in earlier.by_document().items()} if earlier else {}
        losses = [next(known[name]) if name in known else found.losses.get(i) for i, name in enumerate(names)]
        fresh = [place for place, row in enumerate(losses) if row is None]
        ids = [document.ids for document in task.documents]
        windows = [task.windows[place] for place in fresh]
        asked = ScoreRequest(ids, windows, task.reading.window_bos, task.plan.protocol.scores_answers)
        self._tell(task, compiling=self._compiles(task, model, windows))
        for members, scored in self.team.score(model, asked, self.budget.pass_):
            for index, row in zip(members, scored, strict=True):
                losses[fresh[index]] = row
            self.work_done += sum(cost(windows[index][1]) for index in members)
            self._tell(task)
        source = found.describe(task.key, len(task.windows))
        return [row for row in losses if row is not None], source

    def _compiles(self, task: Work, model: LanguageModel, windows: Sequence[tuple[int, Window]]) -> bool:
        """Whether passes to come have a shape that this process has not compiled; it then has."""
        if model.attention != "flex":
            return False
        lead = 0 if task.reading.window_bos is None else 1
        shapes = {
            (task.model.description.scheme, *program)
            for members in batches(windows, self.budget.pass_.tokens, lead)
            for window in [windows[members[0]][1]]
            for program in programs(len(members), window.inputs + lead, window.targets)
        }
        fresh = not shapes <= self.compiled
        self.compiled |= shapes
        return fresh

    def _finished(self, key: CellKey) -> Cell | None:
        cell = read_cell(self.run.folder, key)
        return cell if isinstance(cell, Cell) else None

    def _facts(self, task: Work) -> dict[str, Any]:
        """What a header says of a cell whether it finished or failed."""
        description = task.model.description
        rule = task.plan.protocol.reduction
        return {
            "scheme": description.scheme,
            "seed": description.seed,
            "train_length": description.train_length,
            "weights_sha256": description.weights_sha256,
            "dtype": self.run.specification.dtype,
            "device": self.plan.device.type,
            "tokens_per_pass": self.budget.pass_.tokens,
            "threads": torch.get_num_threads(),
            "first_token": task.reading.marker,
            "reduction": None if rule == Protocol.reduction else rule,
        }

    def _tell(self, task: Work, *, compiling: bool = False) -> None:
        done = sum(row["status"] == "ok" for row in self.rows.values())
        self.on_progress(
            RunProgress(task.key, done, len(self.keys), self.work_done, self.work_total, compiling)
        )

    def _write_summary(self) -> None:
        rows = (self.rows[key] for key in self.keys if key in self.rows)
        write_summary(self.run.folder, rows)


def _document_records(task: Work) -> tuple[DocumentRecord, ...]:
    """The documents that the cell's windows are over, in plan order."""
    documents = [task.documents[index] for index in sorted({index for index, _ in task.windows})]
    return tuple(DocumentRecord(d.name, len(d), d.sha256, d.answer, d.depth) for d in documents)


def _cell(task: Work, header: FinishedHeader, losses: Losses) -> Cell:
    number = {index: n for n, index in enumerate(sorted({index for index, _ in task.windows}))}
    hits = None
    if task.plan.protocol.scores_answers:
        losses, hits = [row[0] for row in losses], [row[1] > 0 for row in losses]
    return Cell(
        key=task.key,
        header=header,
        document=np.array([number[index] for index, _ in task.windows], dtype=np.int64),
        windows=[window for _, window in task.windows],
        losses=losses,
        byte_counts=_byte_counts(task.documents, task.windows),
        hits=hits,
    )


def _byte_counts(
    documents: Sequence[TokenDocument], windows: Sequence[tuple[int, Window]]
) -> list[int] | None:
    counts = [documents[index].byte_count(window) for index, window in windows]
    return None if None in counts else [count for count in counts if count is not None]
