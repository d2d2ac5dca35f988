"""How far models' predictions are from a reference's, as a table: means and percentiles, or by context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kerple_eval.records.reader import RunReader
from kerple_eval.reports.typeset import Table, TableCell, TableRow, check_format, records_table, typeset
from kerple_eval.stats.divergence import (
    PERCENTILES,
    DivergenceCell,
    DivergenceSummary,
    read_divergences,
    summarise,
)
from kerple_eval.support.registry import unknown

IDENTITY = ("task", "protocol", "reference", "model", "length")
HEAD = (
    "model", "length", "mean", "95 % interval", "median", "90 %", "99 %", "99.9 %", "largest", "same top-1",
    "entropy", "top-1 right",
)  # fmt: skip
SMALLEST = 1e-6  # nats that a table shows
SHOWN = (50.0, 90.0, 99.0, 99.9)
COLUMNS = (
    *IDENTITY, "documents", "targets", "divergence", "low", "high", *(f"p{p:g}" for p in PERCENTILES),
    "largest", "agreement", "entropy", "top1", "median_rank",
)  # fmt: skip
CONTEXT_HEAD = ("model", "length", "context", "targets", "mean", "95 % interval", "same top-1", "entropy")
CONTEXT_COLUMNS = (
    *IDENTITY, "context_from", "context_to", "targets", "divergence", "low", "high", "agreement", "entropy"
)  # fmt: skip


def make(
    folders: Sequence[str | Path], style: str = "text", *,
    task: str | None = None, protocol: str | None = None, down: str = "models",
) -> str:  # fmt: skip
    """Tables of one or several runs, one a task, protocol and reference; nats per target.

    ``down``: a row a model and length (``models``), or also a doubling of context (``contexts``).
    """
    check_format(style)
    if down not in ("models", "contexts"):
        raise unknown("down", down, ("models", "contexts"))
    by_context = down == "contexts"
    groups = _records(RunReader(folders), task, protocol, by_context=by_context)
    if style == "csv":
        columns = CONTEXT_COLUMNS if by_context else COLUMNS
        return typeset(records_table(columns, [record for rows in groups.values() for record in rows]), style)
    return "\n".join(typeset(_table(name, rows, by_context), style) for name, rows in groups.items())


def tables(reader: RunReader, *, link: Callable[[str, str, str, int], str]) -> list[Table]:
    """One a task, protocol and reference, a row a model and length; ``link`` as the page has it."""
    groups = _records(reader, None, None, by_context=False)
    return [_table(name, rows, by_context=False, link=link) for name, rows in groups.items()]


def _records(
    reader: RunReader, task: str | None, protocol: str | None, *, by_context: bool
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """By task, protocol and reference."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for found in read_divergences(reader, task, protocol):
        name = (found.key.task, found.key.protocol, found.reference)
        groups.setdefault(name, []).extend(_contexts(found) if by_context else [_record(found)])
    return groups


def _identity(found: DivergenceCell) -> dict[str, Any]:
    key = found.key
    return dict(
        zip(IDENTITY, (key.task, key.protocol, found.reference, found.label, key.length), strict=True)
    )


def _record(found: DivergenceCell) -> dict[str, Any]:
    summary: DivergenceSummary = summarise(found)
    ends = (None, None) if summary.interval is None else (summary.interval.low, summary.interval.high)
    values = (
        summary.documents, summary.targets, summary.mean, *ends, *summary.percentiles, summary.largest,
        summary.agreement, summary.entropy, summary.top1, summary.rank,
    )  # fmt: skip
    return _identity(found) | dict(zip(COLUMNS[len(IDENTITY) :], values, strict=True))


def _contexts(found: DivergenceCell) -> list[dict[str, Any]]:
    """A record a doubling of context."""
    binned = {name: found.binned(name, 1) for name in ("divergence", "agreement", "entropy")}
    mine = binned["divergence"]
    return [
        _identity(found)
        | {"context_from": int(mine.edges[i]), "context_to": int(mine.edges[i + 1]) - 1}
        | {"targets": int(mine.counts[:, i].sum())}
        | {name: other.mean(i) for name, other in binned.items()}
        | dict(zip(("low", "high"), mine.band(i) or (None, None), strict=True))
        for i in mine.bins
    ]


def _table(
    name: tuple[str, str, str], rows: Sequence[dict[str, Any]], by_context: bool,
    link: Callable[[str, str, str, int], str] = lambda *_: "",
) -> Table:  # fmt: skip
    task, protocol, reference = name
    title = f"{task}, {protocol}: divergence from {reference}, nats per target"
    notes = (
        f"mean over targets of KL(p || q), p the prediction of {reference} and q the model's; entropy of q",
        "same top-1: both have the same most likely token"
        + ("" if by_context else "; top-1 right: it is the target"),
    )
    if by_context:
        table = Table(title, CONTEXT_HEAD, tuple(map(_context_row, rows)), notes, frozenset({0}))
    else:
        body = [_row(row, link(task, protocol, row["model"], row["length"])) for row in rows]
        table = Table(title, HEAD, tuple(body), notes, frozenset({0}))
    return table.without_empty_columns()


def _row(record: dict[str, Any], link: str) -> TableRow:
    numbers = [TableCell(_nats(record[f"p{p:g}"]), record[f"p{p:g}"]) for p in SHOWN]
    return TableRow(
        (
            *_label(record),
            TableCell(_nats(record["divergence"]), record["divergence"], link=link),
            _interval(record),
            *numbers,
            TableCell(_nats(record["largest"]), record["largest"]),
            _percent(record["agreement"]),
            TableCell(f"{record['entropy']:.3f}", record["entropy"]),
            _percent(record["top1"]),
        )
    )


def _context_row(record: dict[str, Any]) -> TableRow:
    first, last = record["context_from"], record["context_to"]
    return TableRow(
        (
            *_label(record),
            TableCell(str(first) if first == last else f"{first} to {last}"),
            TableCell(f"{record['targets']:,}", record["targets"]),
            TableCell(_nats(record["divergence"]), record["divergence"]),
            _interval(record),
            _percent(record["agreement"]),
            TableCell(f"{record['entropy']:.3f}", record["entropy"]),
        )
    )


def _label(record: dict[str, Any]) -> tuple[TableCell, TableCell]:
    return TableCell(record["model"]), TableCell(str(record["length"]), record["length"])


def _interval(record: dict[str, Any]) -> TableCell:
    """Of the mean; empty where documents are few."""
    return TableCell("" if record["low"] is None else f"{_nats(record['low'])} to {_nats(record['high'])}")


def _nats(value: float) -> str:
    """Divergences of a quantised model are small: three significant digits, but for rounding of logits."""
    if 0 < abs(value) < SMALLEST:
        return f"<{SMALLEST:.0e}".replace("e-0", "e-")
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _percent(share: float) -> TableCell:
    return TableCell(f"{100 * share:.2f} %", 100 * share)
