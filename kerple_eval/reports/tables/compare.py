"""``kerple-eval compare``: every scheme against one, length by length, with tests and a verdict in words.

One table a (task, protocol). CSV holds every figure at full precision; the terminal and Markdown those
one reads first. Differences are model - reference in nats per target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.reports.rows import Listing, check_format, csv_text, draw, number, probability
from kerple_eval.stats.compare import Comparison, Side, compare, find_group
from kerple_eval.stats.groups import SchemeTable, read_tables
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


def render(
    folders: Sequence[str | Path], against: str, style: str = "text", *, task: str | None = None,
    protocol: str | None = None, level: float = 0.95, seed: int = 0,
) -> str:  # fmt: skip
    """The comparisons of one or several runs with the group ``against``.

    Raises:
        UserError: no such model; nothing to compare it with, or nothing on the same targets.
    """
    check_format(style)
    found = _compared_tables(read_tables(folders, task=task, protocol=protocol), against, level, seed)
    if style == "csv":
        return csv_text(COLUMNS, [_record(table, c) for table, cs in found for c in cs])
    return "\n".join(draw(_listing(table, cs, against, level), style) for table, cs in found)


def listings(
    folders: Sequence[str | Path], against: str, *, level: float = 0.95, seed: int = 0
) -> list[Listing]:
    """The tables that ``render`` prints."""
    found = _compared_tables(read_tables(folders), against, level, seed)
    return [_listing(table, cs, against, level) for table, cs in found]


def _compared_tables(
    tables: Sequence[SchemeTable], against: str, level: float, seed: int
) -> list[tuple[SchemeTable, list[Comparison]]]:
    tables, _ = find_group(tables, against)
    found = [(table, compare(table, against, level=level, seed=seed)) for table in tables]
    if not any(comparisons for _, comparisons in found):
        raise UserError(f"nothing to compare {against} with: no other model has a finished cell")
    if not any(c.side for _, comparisons in found for c in comparisons):
        raise UserError(next(c.reason or "" for _, comparisons in found for c in comparisons))
    return found


def _listing(table: SchemeTable, found: Sequence[Comparison], against: str, level: float) -> Listing:
    name = find_group([table], against)[1].name
    rows = []
    for length in table.lengths:
        here = [c for c in found if c.length == length]
        side = next((c.other for c in here if c.other), None)
        rows.append(_row(name, length, side, "reference"))
        rows += [_compared(c) for c in here]
    title = f"{table.task}, {table.protocol}: against {name}"
    return Listing(title, HEAD, rows, _notes(table, found, level), table.task, table.protocol)


def _row(model: str, length: int, side: Side | None, verdict: str) -> list[str]:
    numbers = ["", ""] if side is None else [f"{side.nll.mean:.4f}", _spread(side)]
    return [model, str(length), *numbers, *[""] * (len(HEAD) - 5), verdict]


def _spread(side: Side) -> str:
    if side.ppl is None:
        return ""
    std = "" if side.ppl.std is None else f"±{number(side.ppl.std)}"
    return number(side.ppl.mean) + std


def _compared(c: Comparison) -> list[str]:
    row = _row(c.model + ("†" if c.dagger else ""), c.length, c.side, c.verdict)
    if c.mean_difference is not None:
        row[4] = f"{c.mean_difference:+.4f}"
    if c.difference is not None:
        row[5:8] = [_ends(c.difference), _ends(c.bootstrap), "" if c.effect is None else f"{c.effect:+.2f}"]
        row[8] = probability(c.p_documents)
    row[9] = "" if c.over_seeds is None else probability(c.over_seeds.p)
    row[10] = probability(c.p_corrected)
    return row


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:+.4f} to {interval.high:+.4f}"


def _notes(table: SchemeTable, found: Sequence[Comparison], level: float) -> list[str]:
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
    lines += table.notes + [f"{place} failed" for place in table.failed]
    return lines


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
