"""LongPPL as a table: perplexity on the tokens that need long context, beside that of all targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.records.reader import RunReader
from kerple_eval.records.reductions import perplexity
from kerple_eval.reports.numbers import between, number
from kerple_eval.reports.typeset import Table, TableCell, TableRow, check_format, records_table, typeset
from kerple_eval.stats.longppl import ALPHA, BETA, LongPplTable, Score, longppl

HEAD = ("model", "length", "LongPPL", "95 % interval", "ppl of all", "")
COLUMNS = (
    "task", "protocol", "reference", "short", "long", "alpha", "beta", "model", "length", "documents",
    "key_tokens", "targets_in_common", "nll", "longppl", "low", "high", "nll_of_all", "note",
)  # fmt: skip


def make(
    folders: Sequence[str | Path], reference: str, style: str = "text", *,
    alpha: float = ALPHA, beta: float = BETA, short: int | None = None,
) -> str:  # fmt: skip
    """Tables of one or several runs; intervals (95 %) are over documents with key tokens."""
    check_format(style)
    tables = longppl(RunReader(folders), reference, alpha=alpha, beta=beta, short=short)
    if style == "csv":
        records = [_record(t, s, alpha, beta) for t in tables for s in t.scores]
        return typeset(records_table(COLUMNS, records), style)
    return "\n".join(typeset(_table(table, alpha, beta), style) for table in tables)


def _table(table: LongPplTable, alpha: float, beta: float) -> Table:
    share = table.key_tokens / table.common if table.common else 0.0
    notes = [
        f"{table.key_tokens:,} key tokens ({share:.2%} of {table.common:,} targets) in {table.documents} "
        f"documents: {table.reference} gains more than {alpha:g} nats from {table.short} to {table.long} and "
        f"is then below {-beta:g}",
        f"{table.reference}'s own losses chose them, so its own numbers are too low",
    ]
    notes += dict.fromkeys(s.found.note for s in table.scores if s.found and s.found.note)
    title = f"{table.task}, {table.protocol}: LongPPL, key tokens by {table.reference}"
    rows = tuple(map(_row, table.scores))
    return Table(title, HEAD, rows, tuple(notes), frozenset({0, len(HEAD) - 1})).without_empty_columns()


def _row(score: Score) -> TableRow:
    found, of_all = score.found, perplexity(score.nll)
    if found is None:
        value, ends = TableCell("-", missing=True), ""
    else:
        ppl = perplexity(found.mean)
        value = TableCell(number(ppl) or "too large", ppl)
        ends = "" if found.ppl is None else between(*found.ppl)
    return TableRow(
        (
            TableCell(score.model),
            TableCell(str(score.length), score.length),
            value,
            TableCell(ends),
            TableCell(number(of_all), of_all),
            TableCell(score.why),
        )
    )


def _record(table: LongPplTable, score: Score, alpha: float, beta: float) -> dict[str, Any]:
    found = score.found
    low, high = (None, None) if found is None or found.ppl is None else found.ppl
    return {
        "task": table.task, "protocol": table.protocol, "reference": table.reference, "short": table.short,
        "long": table.long, "alpha": alpha, "beta": beta, "model": score.model, "length": score.length,
        "documents": None if found is None else found.documents, "key_tokens": score.scored,
        "targets_in_common": table.common, "nll": None if found is None else found.mean,
        "longppl": None if found is None else perplexity(found.mean), "low": low, "high": high,
        "nll_of_all": score.nll, "note": score.why or (None if found is None else found.note),
    }  # fmt: skip
