"""``kerple-eval intervals``: every number of a run with how sure it is.

Over documents (text varies, the model is given), over seeds (mean and standard deviation, the text is
given), and pooled (both vary). One table a (task, protocol).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerple_eval.records.reader import RunReader
from kerple_eval.records.reductions import perplexity
from kerple_eval.reports.numbers import between, number
from kerple_eval.reports.typeset import (
    Link,
    Table,
    TableCell,
    TableRow,
    check_format,
    no_link,
    records_table,
    typeset,
)
from kerple_eval.stats.documents import Scored, different_targets
from kerple_eval.stats.groups import Group, SchemeTable, read_tables
from kerple_eval.stats.intervals import CellInterval, Interval, shortage, sums_interval
from kerple_eval.stats.seeds import Crossed, crossed, spread

HEAD = (
    "model",
    "length",
    "nll",
    "interval",
    "ppl",
    "interval",
    "bootstrap",
    "bits/byte",
    "interval",
    "remark",
)

COLUMNS = (
    "task", "protocol", "length", "model", "seed", "over", "documents", "targets", "targets_hash", "level",
    "nll", "nll_low", "nll_high", "nll_std", "ppl", "ppl_low", "ppl_high", "ppl_std", "ppl_bootstrap_low",
    "ppl_bootstrap_high", "bits_per_byte", "bits_per_byte_low", "bits_per_byte_high", "seed_variance",
    "document_variance", "rest_variance", "note",
)  # fmt: skip


def make(
    folders: Sequence[str | Path], style: str = "text", *, task: str | None = None,
    protocol: str | None = None, models: Sequence[str] = (), lengths: Sequence[int] = (), level: float = 0.95,
    seed: int = 0,
) -> str:  # fmt: skip
    """Intervals of every finished cell, and of every group of seeds, of one or several runs.

    Of ``models`` and ``lengths`` alone where any are given; UserError where there is no such one.
    """
    check_format(style)
    read = read_tables(
        RunReader(folders), task=task, protocol=protocol, models=models, lengths=lengths
    )  # fmt: skip
    found = [(table, _records(table, level, seed)) for table in read]
    if style == "csv":
        return typeset(records_table(COLUMNS, [record for _, records in found for record in records]), style)
    return "\n".join(typeset(_table(table, records, level, no_link), style) for table, records in found)


def tables(reader: RunReader, *, level: float = 0.95, seed: int = 0, link: Link = no_link) -> list[Table]:
    """The tables that ``make`` prints, measured numbers linked by ``link``."""
    return [_table(table, _records(table, level, seed), level, link) for table in read_tables(reader)]


def _records(table: SchemeTable, level: float, seed: int) -> list[dict[str, Any]]:
    rows = []
    for length in table.lengths:
        for group in table.groups:
            rows += [
                _of_cell(table, m.label, m.cells[length], level, seed)
                for m in group.members
                if length in m.cells
            ]
            if len(group.at(length)) > 1:
                rows += _of_seeds(table, group, length, level)
    return rows


def _of_cell(table: SchemeTable, label: str, cell: Scored, level: float, seed: int) -> dict[str, Any]:
    found = sums_interval(cell.sums, level=level)
    row = _blank(table, label, cell, level) | {
        "seed": cell.seed, "over": "documents", "nll": found.mean, "ppl": perplexity(found.mean),
        "note": found.note,
    }  # fmt: skip
    if cell.sums.bytes is not None:
        row["bits_per_byte"] = float(cell.sums.sums.sum() / cell.sums.bytes.sum() / np.log(2))
    if found.nll is not None and found.ppl is not None:
        row |= {"nll_low": found.nll.low, "nll_high": found.nll.high}
        row |= {"ppl_low": found.ppl[0], "ppl_high": found.ppl[1]}
        boot = sums_interval(cell.sums, level=level, method="bootstrap", seed=seed)
        row |= _bootstrap(boot)
    if found.bits_per_byte is not None:
        row |= {"bits_per_byte_low": found.bits_per_byte.low, "bits_per_byte_high": found.bits_per_byte.high}
    return row


def _bootstrap(found: CellInterval) -> dict[str, Any]:
    return (
        {} if found.ppl is None else {"ppl_bootstrap_low": found.ppl[0], "ppl_bootstrap_high": found.ppl[1]}
    )


def _of_seeds(table: SchemeTable, group: Group, length: int, level: float) -> list[dict[str, Any]]:
    """Mean and spread over seeds; the pooled interval where the targets are the same and suffice."""
    cells = group.at(length)
    losses = spread([cell.sums.mean for cell in cells])
    powers = [perplexity(cell.sums.mean) for cell in cells]
    known = [p for p in powers if p is not None]
    row = _blank(table, f"{group.name} ({len(cells)} seeds)", cells[0], level)
    row |= {"nll": losses.mean, "nll_std": losses.std}
    if len(known) == len(powers):
        perplexities = spread(known)
        row |= {"ppl": perplexities.mean, "ppl_std": perplexities.std}
    mean = row | {"over": "seeds"}
    why = next((w for cell in cells if (w := different_targets(cell, cells[0]))), None)
    if why is not None:
        empty = {"targets": None, "targets_hash": None, "documents": None}
        return [mean | empty | {"note": why}]
    if shortage(cells[0].sums.counts):
        return [mean | {"note": "not enough documents to pool seeds and text"}]
    found = crossed(np.stack([cell.sums.sums for cell in cells]), cells[0].sums.counts, level=level)
    return [mean, row | _pooled(found)]


def _pooled(found: Crossed) -> dict[str, Any]:
    span: Interval = found.interval
    return {
        "over": "seeds and documents", "nll_std": None, "ppl_std": None, "ppl": perplexity(span.estimate),
        "nll_low": span.low, "nll_high": span.high, "ppl_low": perplexity(span.low),
        "ppl_high": perplexity(span.high), "seed_variance": found.seed,
        "document_variance": found.document, "rest_variance": found.rest,
        "note": f"{found.seed_share:.0%} of the variance of the mean is from seeds",
    }  # fmt: skip


def _blank(table: SchemeTable, model: str, cell: Scored, level: float) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS) | {
        "task": table.task, "protocol": table.protocol, "length": cell.key.length, "model": model,
        "documents": len(cell.sums), "targets": cell.targets, "targets_hash": cell.targets_hash,
        "level": level,
    }  # fmt: skip


def _table(table: SchemeTable, records: Sequence[dict[str, Any]], level: float, link: Link) -> Table:
    notes = [
        f"{100 * level:g} % intervals over documents (linearised ratio of sums, t); bootstrap: of ppl; "
        "± standard deviation over seeds"
    ]
    if any(record["over"] == "seeds and documents" for record in records):
        notes.append("pooled: seeds and documents as crossed random effects; its ppl is exp of the mean nll")
    notes += dict.fromkeys(r["note"] for r in records if r["note"] and r["over"] == "documents")
    notes += table.remarks
    title = f"{table.task}, {table.protocol}: how sure"
    rows = tuple(_row(r, link(table.task, table.protocol, r["model"], r["length"])) for r in records)
    words = frozenset({0, len(HEAD) - 1})
    return Table(title, HEAD, rows, tuple(notes), words).without_empty_columns()


def _row(record: dict[str, Any], anchor: str) -> TableRow:
    nll, ppl, bits = record["nll"], record["ppl"], record["bits_per_byte"]
    return TableRow(
        (
            TableCell(record["model"]),
            TableCell(str(record["length"]), record["length"]),
            TableCell(f"{nll:.4f}", nll, link=anchor),
            TableCell(_ends(record, "nll")),
            TableCell(number(ppl), ppl, link=anchor if ppl is not None else ""),
            TableCell(_ends(record, "ppl")),
            TableCell(_ends(record, "ppl_bootstrap")),
            TableCell("" if bits is None else f"{bits:.4f}", bits, link=anchor if bits is not None else ""),
            TableCell(_ends(record, "bits_per_byte")),
            TableCell(_remark(record)),
        )
    )


def _ends(record: dict[str, Any], name: str) -> str:
    """The interval of one number, or its standard deviation over seeds."""
    low, high = record[f"{name}_low"], record[f"{name}_high"]
    if record["nll_low"] is None:  # no interval at all; perplexity alone may lack an end
        std = record.get(f"{name}_std")
        return "" if std is None else f"±{number(std) if name == 'ppl' else f'{std:.4f}'}"
    if name.startswith("ppl"):
        return "" if name == "ppl_bootstrap" and low is None and high is None else between(low, high)
    return "" if low is None else f"{low:.4f} to {high:.4f}"


def _remark(record: dict[str, Any]) -> str:
    note = record["note"]
    if record["over"] == "documents":
        return str(note) if record["nll_low"] is None else f"{record['documents']} documents"
    if record["over"] == "seeds":
        return "over seeds" + (f": {note}" if note else "")
    return f"pooled: {note}"
