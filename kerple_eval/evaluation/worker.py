"""The cells of a run, one by one: skips finished ones, isolates failures, keeps the summary up to date."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from kerple_eval.evaluation.cells import Row, cell_of, rows_without_divergence
from kerple_eval.evaluation.failures import failure_of
from kerple_eval.evaluation.in_progress import Deaths
from kerple_eval.evaluation.loading import LoadedModels
from kerple_eval.evaluation.plan import PlannedModel, RunPlan
from kerple_eval.evaluation.pulse import RankLostError
from kerple_eval.evaluation.ranks import ScoreRequest, SingleProcess
from kerple_eval.evaluation.reference import check_divergence, reference_parts
from kerple_eval.evaluation.reuse import find
from kerple_eval.evaluation.stopping import AllDocuments, StoppingRule, UntilSure
from kerple_eval.evaluation.verify import checked_cells, document_records, planned_header
from kerple_eval.evaluation.worklist import Earlier, Work, cost, worklist
from kerple_eval.models.base import LanguageModel
from kerple_eval.models.decoder.flex import programs
from kerple_eval.models.devices import device_lost
from kerple_eval.models.scoring import batches, pass_ranks
from kerple_eval.records.cell import Cell, FailedCell, take_back, write_cell, write_failure
from kerple_eval.records.header import (
    CellHeader,
    DivergenceRecord,
    FailedHeader,
    FeedingRecord,
    FinishedHeader,
    PrunedRecord,
)
from kerple_eval.records.run import Run, summary_line, write_summary_lines
from kerple_eval.types import CellKey, Window

#: Seconds between two writes of ``summary.csv`` while cells are computed; it is whole whenever a run ends.
SUMMARY_EVERY = 1.0


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
    """Computes the cells of a run that are not finished, and keeps ``summary.csv`` up to date.

    ``retry``: try again also the cells whose processes were killed (:mod:`in_progress`).
    """

    def __init__(
        self,
        run: Run,
        plan: RunPlan,
        on_progress: Callable[[RunProgress], None],
        ranks: SingleProcess,
        *,
        retry: bool = False,
    ) -> None:
        self.run = run
        self.ranks = ranks
        self.retry = retry
        self.plan = plan
        self.on_progress = on_progress
        self.status: dict[CellKey, str] = {}  # of the cells on disk
        self.lines: dict[CellKey, str] = {}  # theirs in the summary
        self.finished = 0  # of those, the finished ones
        self.summary_written = -math.inf  # when, by the monotonic clock
        self.every = list(worklist(plan))
        self.earlier = Earlier(self.every)
        self.keys = run.keys()
        self.stopping: StoppingRule = (
            AllDocuments(self.every) if plan.precision is None else UntilSure(plan, plan.precision, self.keys)
        )
        self.deaths = Deaths(run.folder)
        self.without_divergence: set[str] = set()  # models with a finished cell that lacks what is asked for
        for key in self.keys if self.stopping.grows else ():
            outcome = run.cell(key)
            if isinstance(outcome, FailedCell) and (retry or not outcome.header.killed):
                take_back(run.folder, key)
        for outcome in checked_cells(run, plan, self.every):
            self._add_row(outcome)
            if isinstance(outcome, Cell):
                if not self._lacks_divergence(outcome):
                    self.stopping.add(outcome)
            elif outcome.header.killed and not retry:
                self.stopping.drop(outcome.key)
        self.work_total = self.work_done = 0.0
        self.models = LoadedModels(run, plan, ranks)
        self.budget = self.models.budget
        self.compiled: set[tuple[str | None, int, int, int]] = set()

    def work(self) -> None:
        self._record_killed()
        self._write_summary()
        try:
            for tasks in self.stopping.rounds():
                self.work_total += sum(task.cost for task in tasks)
                for task in tasks:
                    self._compute(task)
        finally:
            self._write_summary()
        self.stopping.write(self.run.folder)

    def _compute(self, task: Work) -> None:
        """A cell from its forward passes to its file, and to the summary at most once a second."""
        self._tell(task)
        behind = self.work_done
        with self.deaths.computing(task.key):
            self._record(self._outcome(task))
        self.work_done = behind + task.cost
        if time.monotonic() - self.summary_written >= SUMMARY_EVERY:
            self._write_summary()
        self._tell(task)

    def unfinished(self) -> list[PlannedModel]:
        """The models that have a cell to compute, in the plan's order, and their reference."""
        labels = {key.model for key in self.keys if self.status.get(key) != "ok"}
        labels |= self.without_divergence
        several = [model for model in self.plan.models if model.label in labels]
        other = None if self.plan.reference is None else self.plan.reference.model
        return several if other is None or other in several or not several else [*several, other]

    def _lacks_divergence(self, cell: Cell) -> bool:
        """Whether a finished cell is to be given divergences.

        Raises:
            UserError: it has those from another reference.
        """
        if self.plan.reference is None:
            return False
        model = next(model for model in self.plan.models if model.label == cell.key.model)
        check_divergence(cell, self.plan.reference.record(model), str(self.run.cell_path(cell)))
        said = cell.header.divergence
        lacks = cell.divergence is None and not (said is not None and said.killed and not self.retry)
        if lacks:
            self.without_divergence.add(cell.key.model)
        return lacks

    def _record(self, outcome: Cell | FailedCell) -> None:
        """What became of a cell, on disk, in the summary and for the stopping rule."""
        if isinstance(outcome, Cell):
            write_cell(self.run.folder, outcome)
            self.stopping.add(outcome)
        else:
            write_failure(self.run.folder, outcome)
            self.stopping.drop(outcome.key)
        self._add_row(outcome)

    def _add_row(self, outcome: Cell | FailedCell) -> None:
        row = outcome.summary()
        self.finished += (row["status"] == "ok") - (self.status.get(outcome.key) == "ok")
        self.status[outcome.key] = row["status"]
        self.lines[outcome.key] = summary_line(row)

    def _record_killed(self) -> None:
        """A cell that ends every process that computes it becomes a failed one."""
        reason = None if self.retry else self.deaths.reason()
        for task in self.every:
            if reason is None or self.deaths.left is None or self.deaths.left.cell != task.key:
                continue
            error = f"killed: {reason}; --retry tries again"
            if self.stopping.grows or self.status.get(task.key) != "ok":
                header = FailedHeader(**_fields(self._header(task)), killed=True)
                self._record(FailedCell(task.key, header, error))
            elif self.plan.reference is not None and (cell := self._finished(task.key)) is not None:
                self._record(self._without(cell, task, error, killed=True))
            self.deaths.forget()

    def _without(self, cell: Cell, task: Work, error: str, *, killed: bool | None = None) -> Cell:
        """A finished cell that could not be given divergences: its losses stay, and its header says why."""
        assert self.plan.reference is not None
        record = replace(self.plan.reference.record(task.model), error=error, killed=killed)
        return replace(cell, header=replace(cell.header, divergence=record))

    def _outcome(self, task: Work) -> Cell | FailedCell:
        """The cell computed, or why it could not be."""
        began = time.monotonic()
        reference = self.plan.reference
        earlier = self._finished(task.key) if self.stopping.grows or reference is not None else None
        try:
            model = self.models.load(task.model)
            model.take_pruned()
            losses, source = self._losses(task, model, earlier)
        except RankLostError:
            raise
        except (Exception, SystemExit) as error:  # a model's own code may leave the program
            if lost := device_lost(error):
                raise lost from error
            failure = failure_of(error)
            if earlier is not None and not self.stopping.grows:
                return self._without(earlier, task, failure.error)
            failed = FailedHeader(**_fields(self._header(task)), traceback=failure.traceback)
            return FailedCell(task.key, failed, failure.error)
        if earlier is not None and not self.stopping.grows:  # its losses and what is said of them stay
            self.budget.keep()
            seconds = round(time.monotonic() - began + (earlier.header.seconds or 0), 3)
            header = replace(earlier.header, divergence=self._divergence(task), seconds=seconds)
            return replace(earlier, header=header, divergence=cell_of(task, header, losses).divergence)
        seconds = time.monotonic() - began + ((earlier.header.seconds or 0) if earlier else 0)
        too_large, pruned = self.budget.keep(), model.take_pruned()
        header = FinishedHeader(
            **_fields(self._header(task)),
            documents=document_records(task),
            losses_from=source,
            attention=model.attention,
            feeding=self._feeding(task, model, task.model.label),
            pruned=PrunedRecord(round(pruned.left_out, 4), pruned.bound) if pruned else None,
            out_of_memory_at=too_large,
            seconds=round(seconds, 3),
            precision=self.stopping.header(task),
            divergence=self._divergence(task),
        )
        return cell_of(task, header, losses)

    def _losses(self, task: Work, model: LanguageModel, earlier: Cell | None) -> tuple[list[Row], str]:
        """What is kept of each window in plan order (``[rows, targets]``: losses, hits, divergences), and
        where losses come from: cells before this one, and forward passes.

        Losses that are there already stay; where they lack divergences, these alone are computed.
        """
        reference = self.plan.reference
        shared = reference is not None and reference.serves(task.model)
        reused = find(task, self.earlier.than(task), self._finished, divergences=shared)
        names = [task.documents[index].name for index, _ in task.windows]
        known = {name: iter(rows) for name, rows in earlier.by_document().items()} if earlier else {}
        kept = [next(known[name]) if name in known else reused.losses.get(i) for i, name in enumerate(names)]
        found = [None if row is None else np.atleast_2d(row) for row in kept]
        fresh = [number for number, row in enumerate(found) if row is None]
        for number, rows in self._scored(task, model, fresh):
            found[number] = rows
        if reference is not None:
            for number, served in reused.losses.items():
                row = found[number]
                if row is not None and len(row) < len(np.atleast_2d(served)):
                    found[number] = np.concatenate([row, served[1:]])
            base = rows_without_divergence(task)
            lacking = [number for number, row in enumerate(found) if row is not None and len(row) == base]
            for number, rows in self._scored(task, model, lacking):
                found[number] = np.concatenate([found[number], rows[base:]])
        source = reused.describe(task.key, len(task.windows))
        return [row for row in found if row is not None], source

    def _scored(self, task: Work, model: LanguageModel, numbers: Sequence[int]) -> Iterator[tuple[int, Row]]:
        """The task's windows of these numbers scored: number and ``[rows, targets]``."""
        if not numbers:
            return
        ids = [document.ids for document in task.documents]
        windows = [task.windows[number] for number in numbers]
        reference, parts = self.plan.reference, None
        if reference is not None and (every := reference_parts(reference, task)) is not None:
            parts = [every[number] for number in numbers]
        request = ScoreRequest(
            ids, task.cell.hashes, windows, task.reading.window_bos, task.plan.protocol.scores_answers,
            of="reference" if model is self.models.reference else "model", parts=parts,
            reference=None if reference is None else self.models.reference or model,
        )  # fmt: skip
        self._tell(task, compiling=self._compiles(task, model, windows))
        for members, scored in self.ranks.score(model, request, self.budget.pass_):
            for index, row in zip(members, scored, strict=True):
                yield numbers[index], np.atleast_2d(row)
            self.work_done += sum(cost(windows[index][1]) for index in members)
            self._tell(task)

    def _feeding(self, task: Work, model: LanguageModel, label: str) -> FeedingRecord | None:
        """How the cell's windows longer than a piece were fed to the model of that label; None where no such
        window was.
        """
        feeding = model.feeding
        marker = 0 if task.reading.window_bos is None else 1
        if feeding is None or max(w.inputs for _, w in task.windows) + marker <= feeding.piece:
            return None
        if feeding.refused is not None:
            known = self.run.provenance.one_pass or {}
            self.run.update_provenance(one_pass={**known, label: feeding.refused})
        return FeedingRecord(feeding.piece, feeding.compared, feeding.refused)

    def _divergence(self, task: Work) -> DivergenceRecord | None:
        """Whose predictions the divergences are from, and how it was fed; None where none are asked for."""
        reference = self.plan.reference
        if reference is None:
            return None
        record, other = reference.record(task.model), reference.model
        if other is None or self.models.reference is None:
            return record
        return replace(record, feeding=self._feeding(task, self.models.reference, other.label))

    def _compiles(self, task: Work, model: LanguageModel, windows: Sequence[tuple[int, Window]]) -> bool:
        """Whether passes to come have a shape that this process has not compiled; it then has."""
        if model.attention != "flex" and not (model.attention == "pruned" and model.device.type == "cuda"):
            return False
        marker = 0 if task.reading.window_bos is None else 1
        ranks = pass_ranks(model.device, self.ranks.size)
        shapes = {
            (task.model.description.scheme, *program)
            for members in batches(windows, self.budget.pass_.tokens, marker, ranks)
            for window in [windows[members[0]][1]]
            for program in programs(len(members), window.inputs + marker, window.targets)
        }
        fresh = not shapes <= self.compiled
        self.compiled |= shapes
        return fresh

    def _finished(self, key: CellKey) -> Cell | None:
        cell = self.run.cell(key)
        return cell if isinstance(cell, Cell) else None

    def _header(self, task: Work) -> CellHeader:
        tokens = self.budget.pass_.tokens
        return planned_header(task, self.plan, tokens_per_pass=tokens, threads=torch.get_num_threads())

    def _tell(self, task: Work, *, compiling: bool = False) -> None:
        self.on_progress(
            RunProgress(task.key, self.finished, len(self.keys), self.work_done, self.work_total, compiling)
        )

    def _write_summary(self) -> None:
        lines = [self.lines[key] for key in self.keys if key in self.lines]
        write_summary_lines(self.run.folder, lines)
        self.summary_written = time.monotonic()


def _fields(header: CellHeader) -> dict[str, Any]:
    return {field.name: getattr(header, field.name) for field in fields(CellHeader)}
