"""LongPPL as a table: perplexity on the tokens that need long context, beside that of all targets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.records.reader import RunReader
from kerple_eval.records.reductions import perplexity
from kerple_eval.reports.numbers import between, number
from kerple_eval.reports.typeset import Table, TableCell, TableRow, check_format, records_table, typeset
from kerple_eval.stats.key_text import KeyText
from kerple_eval.stats.longppl import ALPHA, BETA, LongPplTable, Score, longppl, longppl_of
from kerple_eval.support.files import write_output
from kerple_eval.support.readers import read_json
from kerple_eval.support.typed_json import from_json, to_json
from kerple_eval.types import UserError

HEAD = ("model", "length", "LongPPL", "95 % interval", "ppl of all", "")
COLUMNS = (
    "task", "protocol", "reference", "short", "long", "alpha", "beta", "model", "length", "documents",
    "key_tokens", "targets_in_common", "nll", "longppl", "low", "high", "nll_of_all", "note",
)  # fmt: skip


def make(
    folders: Sequence[str | Path], reference: str | None = None, style: str = "text", *,
    alpha: float | None = None, beta: float | None = None, short: int | None = None,
    key_tokens: str | Path | None = None, write_key_tokens: str | Path | None = None,
) -> str:  # fmt: skip
    """Tables of one or several runs; intervals (95 %) are over documents with key tokens.

    Key tokens are chosen by ``reference``, or read from the file ``key_tokens``; ``write_key_tokens`` is
    where they are kept.
    """
    from kerple_eval.evaluation.scored_text import scored_text  # noqa: PLC0415 - opens tokenisers

    check_format(style)
    reader = RunReader(folders)
    if (reference is None) == (key_tokens is None):
        raise UserError("longppl: key tokens are chosen by --reference MODEL, or come from --key-tokens FILE")
    if reference is not None:
        limits = (ALPHA if alpha is None else alpha, BETA if beta is None else beta)
        tables = longppl(reader, reference, scored_text, alpha=limits[0], beta=limits[1], short=short)
    else:
        for option, value in (("alpha", alpha), ("beta", beta), ("short", short)):
            if value is not None:
                raise UserError(
                    f"longppl: --{option} goes with --reference; {key_tokens} was made with its own"
                )
        path = Path(str(key_tokens))
        data = read_json(path)
        if data.pop("kerple_eval_key_tokens", None) != 1:
            raise UserError(f"{path}: no key tokens, as longppl --write-key-tokens writes them")
        tables = longppl_of(reader, from_json(KeyText, data, str(path)), scored_text)
    if write_key_tokens is not None:
        if len(tables) > 1:
            names = ", ".join(f"{table.task} by {table.protocol}" for table in tables)
            raise UserError(f"{reader.names}: {names}: key tokens of one text and protocol make a file")
        content = {"kerple_eval_key_tokens": 1, **to_json(tables[0].as_text())}
        write_output(Path(write_key_tokens), json.dumps(content, ensure_ascii=False).encode() + b"\n")
    if style == "csv":
        return typeset(records_table(COLUMNS, [_record(t, s) for t in tables for s in t.scores]), style)
    return "\n".join(typeset(_table(table), style) for table in tables)


def _table(table: LongPplTable) -> Table:
    share = table.key_tokens / table.common if table.common else 0.0
    notes = [
        f"{table.key_tokens:,} key tokens ({share:.2%} of {table.common:,} targets) in {table.documents} "
        f"documents: {table.reference} gains more than {table.alpha:g} nats from {table.short} to "
        f"{table.long} and is then below {-table.beta:g}",
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


def _record(table: LongPplTable, score: Score) -> dict[str, Any]:
    found = score.found
    low, high = (None, None) if found is None or found.ppl is None else found.ppl
    return {
        "task": table.task, "protocol": table.protocol, "reference": table.reference, "short": table.short,
        "long": table.long, "alpha": table.alpha, "beta": table.beta, "model": score.model,
        "length": score.length,
        "documents": None if found is None else found.documents, "key_tokens": score.scored,
        "targets_in_common": table.common, "nll": None if found is None else found.mean,
        "longppl": None if found is None else perplexity(found.mean), "low": low, "high": high,
        "nll_of_all": score.nll, "note": score.why or (None if found is None else found.note),
    }  # fmt: skip
