"""When to stop: after all documents, or (``--precision``) when the numbers are sure.

With ``--precision`` each look adds documents to every cell of a text; a cell on disk is always whole at some
look, and what to do next is decided from the losses of a look's own documents alone. So a run that is
interrupted replays its looks, finds the cells that lack documents, and ends in the same cells and the same
``DIR/precision.json`` as one that was not.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kerple_eval.evaluation.plan import RunPlan
from kerple_eval.evaluation.stopping_plan import StoppingPlan
from kerple_eval.evaluation.worklist import Work, worklist
from kerple_eval.records.cell import Cell
from kerple_eval.records.header import LookRecord
from kerple_eval.stats.documents import DocumentSums, document_sums
from kerple_eval.stats.looks import LEVEL, Look, look, look_level
from kerple_eval.support.files import write_atomically
from kerple_eval.support.readers import read_json
from kerple_eval.types import CellKey, UserError

FILE = "precision.json"


class StoppingRule(ABC):
    """Which cells to compute next, and when to stop."""

    grows = False  # whether documents may be added to a cell on disk

    @abstractmethod
    def add(self, cell: Cell) -> None:
        """A finished cell, found on disk or just computed."""

    @abstractmethod
    def drop(self, key: CellKey) -> None:
        """A cell that failed: it is not tried again in this call."""

    @abstractmethod
    def rounds(self) -> Iterator[list[Work]]:
        """Cells to compute; the caller computes those of a round before it asks for the next."""

    def header(self, task: Work) -> LookRecord | None:
        """What the header of a computed cell says of the rule."""
        return None

    def write(self, folder: Path) -> None:  # noqa: B027 - most rules keep no record
        """At the end: the rule's record in the run's folder, where it keeps one."""


class AllDocuments(StoppingRule):
    """Every cell once, with all its documents."""

    def __init__(self, every: Sequence[Work]) -> None:
        self.every = every
        self.done: set[CellKey] = set()

    def add(self, cell: Cell) -> None:
        self.done.add(cell.key)

    def drop(self, key: CellKey) -> None:
        self.done.add(key)

    def rounds(self) -> Iterator[list[Work]]:
        yield [task for task in self.every if task.key not in self.done]


class UntilSure(StoppingRule):
    """``--precision``: documents are added to the cells of a text until its numbers are sure."""

    grows = True

    def __init__(self, plan: RunPlan, precision: StoppingPlan, keys: Sequence[CellKey]) -> None:
        self.plan = plan
        self.keys = keys  # in the summary's order, which the record keeps
        self.precision = precision
        self.sums: dict[CellKey, DocumentSums] = {}
        self.failed: set[CellKey] = set()  # in this call; the next one tries them again
        self.history: dict[str, list[Look[CellKey]]] = {text: [] for text in precision.looks}
        self.reasons: dict[str, str] = {}  # of the texts that have stopped

    def add(self, cell: Cell) -> None:
        self.sums[cell.key] = document_sums(cell)

    def drop(self, key: CellKey) -> None:
        self.sums.pop(key, None)
        self.failed.add(key)

    def header(self, task: Work) -> LookRecord:
        until = {"share": self.precision.share, "against": self.precision.against}
        most = max(self.precision.looks[task.key.task])
        return LookRecord(len(task.wanted or ()), most, until)

    def rounds(self) -> Iterator[list[Work]]:
        for number in range(max(len(looks) for looks in self.precision.looks.values())):
            asked = {
                text: list(looks)[number]
                for text, looks in self.precision.looks.items()
                if text not in self.reasons
            }
            if not asked:
                return
            wanted = {text: self.precision.looks[text][n] for text, n in asked.items()}
            yield [task for task in worklist(self.plan, wanted) if self._lacks(task)]
            for text, n in asked.items():
                self._decide(text, n)

    def _lacks(self, task: Work) -> bool:
        """Whether a cell is still to be given some of the task's documents."""
        if task.key in self.failed:
            return False
        return task.key not in self.sums or not task.names <= set(self.sums[task.key].names)

    def _decide(self, text: str, n: int) -> None:
        """Stop where every number is sure or the documents are used up."""
        names = self.precision.looks[text][n]
        against = self.precision.against
        cells = {key: self.sums[key] for key in self.keys if key.task == text and key in self.sums}
        references = None
        if against is not None:
            of = {key: _like(key, against) for key in cells}
            cells = {k: s for k, s in cells.items() if k.model != against and of[k] in self.sums}
            references = {key: self.sums[of[key]] for key in cells}
        seen = look(
            cells, sorted(names),
            precision=self.precision.share, looks=len(self.precision.looks[text]), references=references,
        )  # fmt: skip
        self.history[text].append(seen)
        last = n == max(self.precision.looks[text])
        further = any(not set(sums.names) <= names for key, sums in self.sums.items() if key.task == text)
        if not seen.intervals and not seen.lacking and not further:
            alone = any(key.task == text and key.model != against for key in self.sums)
            self.reasons[text] = f"every cell of {against} failed" if alone else "every cell failed"
        elif seen.sure and not further:
            self.reasons[text] = "sure"
        elif last:
            self.reasons[text] = "every document used"

    def write(self, folder: Path) -> None:
        content = {
            "share": self.precision.share,
            "against": self.precision.against,
            "level": LEVEL,
            "tasks": {text: self._record(text) for text in self.reasons},
        }
        write_atomically(folder / FILE, json.dumps(content, indent=2).encode() + b"\n")

    def _record(self, text: str) -> dict[str, Any]:
        seen = self.history[text]
        targets, budget = self._targets(text)
        return {
            "looks": list(self.precision.looks[text]),
            "level_of_each_look": look_level(len(self.precision.looks[text])),
            "documents": seen[-1].documents,
            "stopped_because": self.reasons[text],
            "targets": targets,
            "targets_of_every_document": budget,
            "seen": [_look_record(look) for look in seen],
            "intervals": [
                {**_named(key), "nll": i.estimate, "low": i.low, "high": i.high}
                for key, i in seen[-1].intervals.items()
            ],
        }

    def _targets(self, text: str) -> tuple[int, int]:
        """Targets of a text's finished cells: those scored, and those of every document."""
        finished = {key: sums for key, sums in self.sums.items() if key.task == text}
        models = {model.label: model for model in self.plan.models}
        every = 0
        for key in finished:
            cell = models[key.model].cells[text, key.protocol, key.length]
            every += sum(window.targets for _, window in cell.windows)
        return sum(int(sums.counts.sum()) for sums in finished.values()), every


def _look_record(seen: Look[CellKey]) -> dict[str, Any]:
    if not seen.intervals:
        return {"documents": seen.documents, "widest_percent": None}
    width = seen.intervals[seen.widest].half_width
    try:
        percent: float | None = 100 * math.expm1(width)
    except OverflowError:
        percent = None
    return {"documents": seen.documents, "widest_percent": percent, "widest": _named(seen.widest)}


def _named(key: CellKey) -> dict[str, str | int]:
    return {"model": key.model, "protocol": key.protocol, "length": key.length}


def _like(key: CellKey, model: str) -> CellKey:
    return CellKey(model, key.task, key.protocol, key.length, key.longest)


def read_lines(folder: Path) -> list[str]:
    """What ``DIR/precision.json`` says, a line per task; none where the run asked for no precision."""
    path = folder / FILE
    if not path.exists():
        return []
    data = read_json(path)
    try:
        return [_line(data, text, record) for text, record in data["tasks"].items()]
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: damaged: {type(error).__name__} {error}") from None


def _line(data: dict[str, Any], text: str, record: dict[str, Any]) -> str:
    what = f"difference to {data['against']}" if data["against"] else "perplexity"
    wanted = f"every {what} within {100 * data['share']:g} %"
    percent = record["seen"][-1]["widest_percent"]
    reason = {
        "sure": wanted,
        "every document used": f"every document used before {wanted}",
    }.get(record["stopped_because"], record["stopped_because"])
    at = "" if percent is None else f" (the widest: {percent:.3g} %)"
    line = f"{text}: {record['documents']} of {record['looks'][-1]} documents, {reason}{at}"
    used, every = record["targets"], record["targets_of_every_document"]
    return line + (f"; {used:,} of {every:,} targets, {1 - used / every:.0%} saved" if every else "")
