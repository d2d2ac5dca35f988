"""Exact match and loss of answers as a table: one row a model and length, depths across."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.reports.rows import Listing, check_format, csv_text, draw
from kerple_eval.stats.answer_grids import AnswerGrid, read_answers
from kerple_eval.stats.answers import Share, by_depth, share

COLUMNS = (
    "task", "model", "length", "depth", "documents", "exact", "exact_match", "low", "high", "targets",
    "hits", "nll",
)  # fmt: skip


def render(folders: Sequence[str | Path], style: str = "text") -> str:
    """Tables of one or several runs; ``csv`` has one row a depth, and one without depth for all."""
    check_format(style)
    if style == "csv":
        return csv_text(COLUMNS, [row for grid in read_answers(folders) for row in _csv(grid)])
    return "\n".join(draw(one, style) for one in listings(folders))


def listings(folders: Sequence[str | Path]) -> list[Listing]:
    """One table a task."""
    return [_table(grid) for grid in read_answers(folders)]


def _table(grid: AnswerGrid) -> Listing:
    head = ["model", "length", *(f"{depth:.2g}" for depth in grid.depths), "all", "95 % interval", "loss"]
    rows, notes = [], []
    for model in grid.models:
        for length in grid.lengths:
            if (model, length) in grid.failed:
                notes.append(f"{model} at {length} failed: {grid.failed[model, length]}")
            if (model, length) not in grid.cells:
                continue
            found = grid.cells[model, length]
            depths = by_depth(found)
            every = share(found)
            low, high = every.interval()
            shown = [_percent(depths[d].exact_match) if d in depths else "-" for d in grid.depths]
            rows.append(
                [model, str(length), *shown, _percent(every.exact_match),
                 f"{_percent(low)} to {_percent(high)}", f"{every.loss:.4g}"]
            )  # fmt: skip
    title = f"{grid.task}: exact matches in % by depth (0 is the beginning), loss in nats per target"
    return Listing(title, head, rows, [*_notes(grid), *notes], grid.task, "answer", last_is_number=True)


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


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"


def _csv(grid: AnswerGrid) -> list[dict[str, Any]]:
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
