"""Exact match and loss of answers as a table: one row per model and length, depths across."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.records.reader import RunReader
from kerple_eval.reports.typeset import Table, TableCell, TableRow, check_format, records_table, typeset
from kerple_eval.stats.answer_grids import AnswerGrid, read_answers
from kerple_eval.stats.answers import Share, by_depth, share

COLUMNS = (
    "task", "model", "length", "depth", "documents", "exact", "exact_match", "low", "high", "targets",
    "hits", "nll",
)  # fmt: skip


def make(folders: Sequence[str | Path], style: str = "text") -> str:
    """Tables of one or several runs; ``csv`` has one row per depth, and one without depth for all."""
    check_format(style)
    if style == "csv":
        records = [record for grid in read_answers(RunReader(folders)) for record in _records(grid)]
        return typeset(records_table(COLUMNS, records), style)
    return "\n".join(typeset(table, style) for table in tables(RunReader(folders)))


def tables(reader: RunReader) -> list[Table]:
    """One table a task."""
    return [_table(grid) for grid in read_answers(reader)]


def _table(grid: AnswerGrid) -> Table:
    head = ("model", "length", *(f"{depth:.2g}" for depth in grid.depths), "all", "95 % interval", "loss")
    rows, notes = [], []
    for model in grid.models:
        for length in grid.lengths:
            if (model, length) in grid.failed:
                notes.append(f"{model} at {length} failed: {grid.failed[model, length]}")
            if (model, length) not in grid.cells:
                continue
            depths = by_depth(grid.cells[model, length])
            every = share(grid.cells[model, length])
            low, high = every.interval()
            rows.append(
                TableRow(
                    (
                        TableCell(model),
                        TableCell(str(length), length),
                        *(_percent(depths[d].exact_match if d in depths else None) for d in grid.depths),
                        _percent(every.exact_match),
                        TableCell(f"{100 * low:.0f} to {100 * high:.0f}"),
                        TableCell(f"{every.loss:.4g}", every.loss),
                    )
                )
            )
    title = f"{grid.task}: exact matches in % by depth (0 is the beginning), loss in nats per target"
    return Table(title, head, tuple(rows), (*_notes(grid), *notes))


def _notes(grid: AnswerGrid) -> list[str]:
    counts = {s.documents for found in grid.cells.values() for s in by_depth(found).values()}
    drawn = " or ".join(map(str, sorted(counts)))
    lines = [
        f"{drawn} documents a length and depth; exact: every token of the answer was the argmax",
        "intervals are Wilson's, over documents of all depths",
    ]
    other = [length for length, hashes in sorted(grid.hashes.items()) if len(hashes) > 1]
    if other:
        lines.append(
            f"warning: models saw different documents at {', '.join(map(str, other))} "
            "(other tokenisers, vocabularies or draws)"
        )
    return lines


def _percent(share_of_one: float | None) -> TableCell:
    if share_of_one is None:
        return TableCell("-", missing=True)
    return TableCell(f"{100 * share_of_one:.0f}", 100 * share_of_one)


def _records(grid: AnswerGrid) -> list[dict[str, Any]]:
    rows = []
    for (model, length), found in grid.cells.items():
        parts: list[tuple[float | None, Share]] = [*by_depth(found).items(), (None, share(found))]
        for depth, part in parts:
            low, high = part.interval()
            values = (part.documents, part.exact, part.exact_match, low, high, part.targets, part.hits)
            rows.append(
                dict(zip(COLUMNS, (grid.task, model, length, depth, *values, part.loss), strict=True))
            )
    return rows
