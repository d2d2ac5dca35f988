"""Losses that a run already holds: windows of one cell served by those of the cells before it.

The loss of target k depends on the inputs alone: the document's tokens ``[start:k]``, after the
first-token marker where windows have one. So a window has its losses from a finished one of the same
model over the same tokens (by sha256), marker and ``start`` that scored all its targets. Where losses
depend on how many tokens follow (a model that is not prefix-invariant), ``stop`` must be the same too.

A cell looks only at cells that come before it in the run's order, so that what it finds does not depend
on where a run was interrupted. Cells of one protocol serve each other only where that is the protocol's
point (``prefix``): a protocol run alone then gives a length the same losses to the bit whatever the
others. The numbers of a served cell are those of another batch, equal but for rounding
(docs/decisions/2026-11-25.md says how much).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kerple_eval.evaluation.worklist import Work
from kerple_eval.records.cell import Cell
from kerple_eval.types import CellKey, Window

WindowLosses = NDArray[np.float32]


@dataclass
class ReusedLosses:
    """Losses by window number, and how many windows each cell gave.

    ``[targets]``, or ``[rows, targets]``: losses and divergences.
    """

    losses: dict[int, WindowLosses] = field(default_factory=dict)
    counts: dict[CellKey, int] = field(default_factory=dict)

    def describe(self, key: CellKey, windows: int) -> str:
        """``losses_from`` of the cell's header."""
        if not self.counts:
            return "forward pass"
        parts = [
            f"prefix of {source.length}"
            if source.protocol == key.protocol == "prefix"
            else f"{source.protocol} at {source.length}"
            for source in self.counts
        ]
        rest = windows - len(self.losses)
        if len(parts) == 1 and not rest:
            return parts[0]
        numbers = [*self.counts.values(), rest] if rest else [*self.counts.values()]
        names = [*parts, "forward pass"]
        return ", ".join(f"{name} ({n} windows)" for name, n in zip(names, numbers, strict=False))


def find(
    task: Work,
    before: Sequence[Work],
    read: Callable[[CellKey], Cell | None],
    *,
    divergences: bool = False,
) -> ReusedLosses:
    """Losses of the windows of ``task`` that finished cells among ``before`` hold.

    ``read`` gives a finished cell, None for one that failed; only cells that may serve are read.
    ``divergences``: those of a cell that has them serve with its losses.
    """
    reused = ReusedLosses()
    invariant, protocol = task.model.description.prefix_invariant, task.key.protocol
    wanted: dict[tuple[str, int], list[int]] = {}
    for index, (document, window) in enumerate(task.windows):
        wanted.setdefault((task.cell.hashes[document], window.start), []).append(index)
    for source in sorted(before, key=lambda source: source.key.protocol != protocol):
        if source.key.protocol == protocol and not task.plan.protocol.is_prefix:
            continue
        if source.reading.window_bos != task.reading.window_bos or not wanted:
            continue
        planned = [(source.cell.hashes[d], w) for d, w in source.cell.windows]
        if not _serving(task.windows, wanted, planned, invariant):
            continue
        cell = read(source.key)
        if cell is None:
            continue
        hashes = [document.sha256 for document in cell.header.documents]
        held = [(hashes[d], w) for d, w in zip(cell.document.tolist(), cell.windows, strict=True)]
        rows = _serving(task.windows, wanted, held, invariant)
        for index, row in rows.items():
            document, window = task.windows[index]
            offset = window.first_target - cell.windows[row].first_target
            part = slice(offset, offset + window.targets)
            reused.losses[index] = cell.losses[row][part]
            if divergences and cell.divergence is not None:
                columns = [column[row][part] for column in cell.divergence.columns.values()]
                reused.losses[index] = np.stack([cell.losses[row][part], *columns]).astype(np.float32)
            inputs = (task.cell.hashes[document], window.start)
            wanted[inputs].remove(index)
            if not wanted[inputs]:
                del wanted[inputs]
        if rows:
            reused.counts[source.key] = len(rows)
    return reused


def _serving(
    windows: Sequence[tuple[int, Window]],
    wanted: dict[tuple[str, int], list[int]],
    held: Sequence[tuple[str, Window]],
    prefix_invariant: bool,
) -> dict[int, int]:
    """Number of a window -> number of a held one that scored the same targets from the same inputs."""
    rows: dict[int, int] = {}
    for row, (sha256, window) in enumerate(held):
        for index in wanted.get((sha256, window.start), ()):
            if index not in rows and _covers(window, windows[index][1], prefix_invariant):
                rows[index] = row
    return rows


def _covers(have: Window, need: Window, prefix_invariant: bool) -> bool:
    reaches = have.stop >= need.stop if prefix_invariant else have.stop == need.stop
    return reaches and have.first_target <= need.first_target
