"""Divergences of cells from their reference, reduced: means, percentiles, and means by context.

Percentiles are linear between order statistics, as numpy's and llama.cpp's (perplexity.cpp, ``percentile``);
the mean is over all targets alike, its interval (95 %) over documents.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kerple_eval.records.cell import Cell
from kerple_eval.records.header import DivergenceRecord
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import own_label
from kerple_eval.stats.by_context import Binned, by_context
from kerple_eval.stats.intervals import Interval, ratio_interval, shortage
from kerple_eval.types import CellKey, UserError

PERCENTILES = (1.0, 5.0, 10.0, 50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class DivergenceCell:
    """A finished cell with divergences, under its model's label among several runs.

    ``reference``: in words, which tell references of one label and other weights apart.
    """

    label: str
    cell: Cell
    reference: str

    @property
    def key(self) -> CellKey:
        return self.cell.key

    def values(self, name: str) -> NDArray[np.float64]:
        """A column of :mod:`kerple_eval.records.divergence`, all targets ``[n]``."""
        assert self.cell.divergence is not None
        return self.cell.divergence.flat(name).astype(np.float64)

    def binned(self, name: str, per_doubling: int) -> Binned:
        """A column by document and bin of context."""
        assert self.cell.divergence is not None
        return by_context(self.cell, self.label, self.cell.divergence.columns[name], per_doubling)


@dataclass(frozen=True)
class DivergenceSummary:
    """A cell's divergences in numbers; nats but for ``agreement`` and ``top1`` (shares of the targets).

    ``interval``: of ``mean``, None with few documents. ``percentiles``: as :data:`PERCENTILES` names them.
    ``top1``: targets that are the model's largest logit. ``rank``: median of the target's.
    """

    documents: int
    targets: int
    mean: float
    interval: Interval | None
    percentiles: tuple[float, ...]
    largest: float
    agreement: float
    entropy: float
    top1: float
    rank: float


def summarise(found: DivergenceCell) -> DivergenceSummary:
    values, rank = found.values("divergence"), found.values("rank")
    owner = np.repeat(found.cell.document, [window.targets for window in found.cell.windows])
    counts = np.bincount(owner)
    sums = np.bincount(owner, weights=values)[counts > 0].astype(np.float64)
    counts = counts[counts > 0]
    return DivergenceSummary(
        documents=len(counts),
        targets=len(values),
        mean=float(values.mean()),
        interval=None if shortage(counts) else ratio_interval(sums, counts),
        percentiles=tuple(float(q) for q in np.percentile(values, PERCENTILES)),
        largest=float(values.max()),
        agreement=float(found.values("agreement").mean()),
        entropy=float(found.values("entropy").mean()),
        top1=float((rank == 1).mean()),
        rank=float(np.median(rank)),
    )


def read_divergences(
    reader: RunReader, task: str | None = None, protocol: str | None = None
) -> Iterator[DivergenceCell]:
    """Finished cells with divergences, one at a time, in the summaries' order.

    Raises:
        UserError: the runs have none, with the command that computes them.
    """
    owners: dict[tuple[str, str], dict[str, str]] = {}
    references: dict[str, str] = {}
    some = False
    for run, cell in reader.cells(task=task, protocol=protocol):
        label = own_label(
            cell.key.model, run.folder, owners.setdefault((cell.key.task, cell.key.protocol), {})
        )
        if isinstance(cell, Cell) and cell.divergence is not None and cell.header.divergence is not None:
            some = True
            yield DivergenceCell(label, cell, _in_words(cell.header.divergence, references))
    if not some:
        commands = [run.provenance.sessions[-1].command for run in reader.runs if run.provenance.sessions]
        again = shlex.join(commands[0]) if commands else "kerple-eval run ..."
        raise UserError(
            f"{reader.names}: its cells hold losses alone; compute what is missing by: {again} "
            "--divergence-from MODEL"
        )


def _in_words(record: DivergenceRecord, references: dict[str, str]) -> str:
    """``references``: label -> weights of the first reference that bears it."""
    if record.length is not None:
        return f"itself at {record.length}"
    label, weights = record.reference.label, record.reference.weights_sha256
    return label if references.setdefault(label, weights) == weights else f"{label} (weights {weights[:8]})"
