"""``kerple-eval compare``: every scheme against one, length by length, with tests and a verdict in words.

One table a (task, protocol). CSV holds every figure at full precision; the terminal and Markdown those
one reads first. Differences are model - reference in nats per target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.records.reader import RunReader
from kerple_eval.reports.numbers import number, probability, signed
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
from kerple_eval.stats.compare import Comparison, Side, compare
from kerple_eval.stats.groups import SchemeTable, find_group, read_tables
from kerple_eval.stats.intervals import Interval
from kerple_eval.stats.significance import ALPHA
from kerple_eval.types import UserError

HEAD = (
    "model", "length", "nll", "ppl", "difference", "interval", "bootstrap", "effect", "p documents",
    "p seeds", "p Holm", "verdict",
)  # fmt: skip

COLUMNS = (
    "task", "protocol", "length", "model", "reference", "seeds", "documents", "targets", "targets_hash",
    "nll", "nll_std", "ppl", "ppl_std", "reference_nll", "reference_nll_std", "reference_ppl",
    "reference_ppl_std", "difference", "low", "high", "documents_low", "documents_high", "bootstrap_low",
    "bootstrap_high", "level", "effect", "worse_on_documents", "p_documents", "p_seeds", "p_pooled",
    "p_corrected", "p_seeds_corrected", "dagger", "verdict", "note",
)  # fmt: skip


def make(
    folders: Sequence[str | Path], against: str, style: str = "text", *, task: str | None = None,
    protocol: str | None = None, models: Sequence[str] = (), lengths: Sequence[int] = (), level: float = 0.95,
    seed: int = 0,
) -> str:  # fmt: skip
    """The comparisons of one or several runs with the group ``against``; of ``models`` and ``lengths`` only.

    Raises:
        UserError: no such model or length; nothing to compare it with, or nothing on the same targets.
    """
    check_format(style)
    read = read_tables(
        RunReader(folders), task=task, protocol=protocol, models=[*models, against] if models else (),
        lengths=lengths,
    )  # fmt: skip
    found = _compared_tables(read, against, level, seed)
    if style == "csv":
        return typeset(records_table(COLUMNS, [_record(table, c) for table, cs in found for c in cs]), style)
    return "\n".join(typeset(_table(table, cs, against, level, no_link), style) for table, cs in found)


def tables(
    reader: RunReader, against: str, *, level: float = 0.95, seed: int = 0, link: Link = no_link
) -> list[Table]:
    """The tables that ``make`` prints, measured numbers linked by ``link``."""
    found = _compared_tables(read_tables(reader), against, level, seed)
    return [_table(table, cs, against, level, link) for table, cs in found]


def _compared_tables(
    every: Sequence[SchemeTable], against: str, level: float, seed: int
) -> list[tuple[SchemeTable, list[Comparison]]]:
    having, _ = find_group(every, against)
    found = [(table, compare(table, against, level=level, seed=seed)) for table in having]
    if not any(comparisons for _, comparisons in found):
        raise UserError(f"nothing to compare {against} with: no other model has a finished cell")
    if not any(c.side for _, comparisons in found for c in comparisons):
        raise UserError(next(c.reason or "" for _, comparisons in found for c in comparisons))
    return found


def _table(table: SchemeTable, found: Sequence[Comparison], against: str, level: float, link: Link) -> Table:
    name = find_group([table], against)[1].name
    rows = []
    for length in table.lengths:
        here = [c for c in found if c.length == length]
        side = next((c.other for c in here if c.other), None)
        rows.append(_row(name, length, side, link(table.task, table.protocol, name, length)))
        rows += [
            _row(c.model, length, c.side, link(table.task, table.protocol, c.model, length), c) for c in here
        ]
    title = f"{table.task}, {table.protocol}: against {name}"
    words = frozenset({0, len(HEAD) - 1})
    return Table(title, HEAD, tuple(rows), _notes(table, found, level), words).without_empty_columns()


def _row(
    model: str, length: int, side: Side | None, anchor: str, comparison: Comparison | None = None
) -> TableRow:
    """A row of the reference, or of what ``comparison`` compares with it."""
    numbers = [TableCell("")] * (len(HEAD) - 5)
    if comparison is not None:
        numbers = _compared(comparison)
    return TableRow(
        (
            TableCell(model, mark="†" if comparison is not None and comparison.dagger else ""),
            TableCell(str(length), length),
            *([TableCell("")] * 2 if side is None else _levels(side, anchor)),
            *numbers,
            TableCell("reference" if comparison is None else comparison.verdict),
        )
    )


def _levels(side: Side, anchor: str) -> list[TableCell]:
    """Mean loss and perplexity of one side."""
    nll = TableCell(f"{side.nll.mean:.4f}", side.nll.mean, link=anchor)
    if side.ppl is None:
        return [nll, TableCell("")]
    std = "" if side.ppl.std is None else f"±{number(side.ppl.std)}"
    return [nll, TableCell(number(side.ppl.mean) + std, side.ppl.mean, link=anchor)]


def _compared(c: Comparison) -> list[TableCell]:
    """The columns from ``difference`` to ``p Holm``."""
    tested = c.difference is not None
    return [
        _signed(c.mean_difference, 4),
        _ends(c.difference),
        _ends(c.bootstrap if tested else None),
        _signed(c.effect if tested else None, 2),
        _p(c.p_documents if tested else None),
        _p(None if c.over_seeds is None else c.over_seeds.p),
        _p(c.p_corrected),
    ]


def _signed(value: float | None, digits: int) -> TableCell:
    return TableCell("" if value is None else signed(value, digits), value)


def _p(value: float | None) -> TableCell:
    return TableCell(probability(value), value)


def _ends(interval: Interval | None) -> TableCell:
    return TableCell("" if interval is None else f"{signed(interval.low)} to {signed(interval.high)}")


def _notes(table: SchemeTable, found: Sequence[Comparison], level: float) -> tuple[str, ...]:
    lines = [
        f"difference: nats per target, model - reference, with its {100 * level:g} % interval: "
        + _over(found)
        + "; bootstrap: over documents"
    ]
    kinds = {(c.documents, c.targets, c.targets_hash) for c in found if c.documents is not None}
    lines += [
        f"{documents:,} document{'s' * (documents != 1)}, {targets:,} targets (hash {digest})"
        for documents, targets, digest in sorted(kinds)
    ]
    tests = sum(c.p is not None for c in found)
    if tests:
        lines.append(
            "p documents: sign flips of the documents' differences; p Holm: of the verdict's p, corrected "
            f"for {tests} comparison{'s' * (tests != 1)}; verdict at {ALPHA:g}; effect: mean over deviation "
            "of documents"
        )
    if any(c.difference and not c.pooled for c in found):
        lines.append(
            "one training seed a side says which model is better on text like this, not which scheme: "
            "another seed may differ by more"
        )
    if any(c.over_seeds for c in found):
        lines.append(
            f"p seeds: paired t-test of perplexities over seeds, uncorrected; † worse than the reference "
            f"by it at {ALPHA:g}, as in the KERPLE paper"
        )
    lines += dict.fromkeys(c.note for c in found if c.note)
    return (*lines, *table.remarks)


def _over(found: Sequence[Comparison]) -> str:
    pooled, alone = (any(bool(c.pooled) is kind for c in found if c.difference) for kind in (True, False))
    if pooled and alone:
        return "over seeds and documents where there are seeds, else over documents"
    return "over seeds and documents" if pooled else "over documents"


def _record(table: SchemeTable, c: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {
        "task": table.task, "protocol": table.protocol, "length": c.length, "model": c.model,
        "reference": c.reference, "seeds": " ".join(map(str, c.seeds)), "documents": c.documents,
        "targets": c.targets, "targets_hash": c.targets_hash, "difference": c.mean_difference,
        "effect": c.effect, "worse_on_documents": c.worse_on, "p_documents": c.p_documents,
        "p_pooled": c.p_pooled, "p_corrected": c.p_corrected, "p_seeds_corrected": c.p_seeds_corrected,
        "dagger": "yes" if c.dagger else "no", "verdict": c.verdict, "note": c.note,
    }  # fmt: skip
    for prefix, side in (("", c.side), ("reference_", c.other)):
        if side is not None:
            row |= {f"{prefix}nll": side.nll.mean, f"{prefix}nll_std": side.nll.std}
            if side.ppl is not None:
                row |= {f"{prefix}ppl": side.ppl.mean, f"{prefix}ppl_std": side.ppl.std}
    spans = (("", c.difference), ("documents_", c.over_documents), ("bootstrap_", c.bootstrap))
    for prefix, interval in spans:
        if interval is not None:
            row |= {f"{prefix}low": interval.low, f"{prefix}high": interval.high, "level": interval.level}
    if c.over_seeds is not None:
        row["p_seeds"] = c.over_seeds.p
    return row
