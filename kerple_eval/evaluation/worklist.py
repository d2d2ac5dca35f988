"""Cells to compute, in the order in which they are: the work of a plan, or of one look of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

from kerple_eval.evaluation.plan import CellPlan, PlannedModel, ProtocolPlan, RunPlan
from kerple_eval.types import CellKey, Window


@dataclass
class Work:
    """One cell to compute."""

    key: CellKey
    model: PlannedModel
    plan: ProtocolPlan
    cell: CellPlan
    wanted: frozenset[str] | None = None  # names of the documents to score; None: all

    def __post_init__(self) -> None:
        self.documents, self.reading = self.cell.documents, self.cell.reading
        self.windows = self.cell.windows
        if self.wanted is not None:
            self.windows = [p for p in self.windows if self.documents[p[0]].name in self.wanted]
        self.names = {self.documents[index].name for index, _ in self.windows}
        self.cost = sum(cost(window) for _, window in self.windows)


def worklist(plan: RunPlan, wanted: Mapping[str, frozenset[str]] | None = None) -> Iterator[Work]:
    """Cells by model, task, protocol; a prefix protocol's longest length first, as others need it.

    ``wanted``: of the texts named only, and of each the documents named only.
    """
    for model in plan.models:
        for text in model.texts:
            if wanted is not None and text not in wanted:
                continue
            for protocol in plan.protocols:
                for length in sorted(protocol.lengths, reverse=protocol.protocol.is_prefix):
                    cell = model.cells[text, protocol.name, length]
                    key = protocol.key(model.label, text, length)
                    yield Work(key, model, protocol, cell, wanted[text] if wanted else None)


class Earlier:
    """Which cells come before another in a run's order, of the same model and text."""

    def __init__(self, every: Iterable[Work]) -> None:
        self._of: dict[tuple[str, str], list[Work]] = {}
        for task in every:
            self._of.setdefault((task.key.model, task.key.task), []).append(task)

    def than(self, task: Work) -> list[Work]:
        same = self._of[task.key.model, task.key.task]
        return list(takewhile(lambda other: other.key != task.key, same))


def cost(window: Window) -> float:
    """Rough cost of a window, for the progress bar: linear layers and causal attention."""
    return window.inputs * (1.0 + window.inputs / 4096)
