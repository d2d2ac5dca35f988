"""``kerple-eval reach``: how far each model holds, and the longest context it is shown to use.

See :mod:`kerple_eval.stats.reach`. One table a (task, protocol).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.records.reader import RunReader
from kerple_eval.reports.numbers import probability, signed
from kerple_eval.reports.reach_columns import columns
from kerple_eval.reports.typeset import Table, TableCell, TableRow, check_format, records_table, typeset
from kerple_eval.stats.compare import change_of_perplexity
from kerple_eval.stats.intervals import EVEN
from kerple_eval.stats.looks import parse_percent
from kerple_eval.stats.reach import ERRORS, MARGIN, RULER, Gain, Reach, Reaches, Step, read_reach
from kerple_eval.stats.significance import ALPHA

HEAD = ("model", "holds to", "RULER", "tested last", "uses", "gain (nats)", "p Holm", "documents")
COLUMNS = (
    "task", "protocol", "model", "shortest", "longest", "documents", "targets", "targets_hash", "margin",
    "holds_to", "holds_at_least", "tested_last", "outcome", "against", "change", "change_low", "change_high",
    "exact", "ruler", "uses", "uses_at_least", "gain_over", "gain", "gain_low", "gain_high", "gain_targets",
    "p_holm", "note",
)  # fmt: skip


def make(
    folders: Sequence[str | Path], style: str = "text", *, task: str | None = None,
    protocol: str | None = None, models: Sequence[str] = (), margin: str | None = None,
) -> str:  # fmt: skip
    """Reaches of one or several runs; ``margin``, 1% unless given, is of perplexity."""
    check_format(style)
    share = MARGIN if margin is None else parse_percent(margin, "--margin")
    reaches = read_reach(RunReader(folders), task=task, protocol=protocol, models=models, margin=share)
    if style == "csv":
        return typeset(records_table(COLUMNS, [_record(one, share) for one in reaches.found]), style)
    return "\n".join(typeset(table, style) for table in tables(reaches, share))


def tables(reaches: Reaches, margin: float = MARGIN) -> list[Table]:
    """One table a (task, protocol); what was left out stands below the last."""
    groups: dict[tuple[str, str], list[Reach]] = {}
    for one in reaches.found:
        groups.setdefault((one.task, one.protocol), []).append(one)
    found: list[Table] = []
    for (task, protocol), members in groups.items():
        last = len(found) == len(groups) - 1
        notes = (*_notes(members, margin), *(map(str, reaches.left_out) if last else ()))
        rows = tuple(map(_row, members))
        table = Table(f"{task}, {protocol}: how far it reaches", HEAD, rows, notes, frozenset({0, 3}))
        found.append(table.without_empty_columns())
    return found


def _row(one: Reach) -> TableRow:
    holds, uses = columns(one)
    gain = one.used or max(one.gains, key=lambda gain: gain.length, default=None)
    return TableRow(
        (
            TableCell(one.model),
            holds,
            TableCell("" if one.ruler is None else str(one.ruler), one.ruler, missing=one.ruler is None),
            TableCell(one.short_of or _tested(one)),
            uses,
            TableCell("") if gain is None else _gain(gain),
            TableCell("") if gain is None else TableCell(probability(gain.p_holm), gain.p_holm),
            TableCell(str(one.documents), one.documents),
        )
    )


def _tested(one: Reach) -> str:
    words = []
    if one.steps:
        words.append(_step(one.steps[-1]))
    if one.missing is not None and all(step.outcome == "holds" for step in one.steps):
        words.append(f"{one.missing} has no finished cell")
    return "; ".join(words)


def _step(step: Step) -> str:
    if step.exact is not None and step.documents is not None:
        return f"{step.length}: {step.outcome}, {step.exact} of {step.documents} exact"
    assert step.change is not None
    assert step.low is not None
    assert step.high is not None
    word, end = ("at least", step.low) if step.outcome == "lost" else ("at most", step.high)
    change = f"perplexity {change_of_perplexity(step.change)} from {step.against}"
    return f"{step.length}: {step.outcome}, {change} ({word} {change_of_perplexity(end)})"


def _gain(gain: Gain) -> TableCell:
    span = gain.nats
    value, low, high = map(signed, (span.estimate, span.low, span.high))
    text = f"{value} [{low}, {high}] at {gain.length}"
    return TableCell(text, span.estimate)


def _notes(members: Sequence[Reach], margin: float) -> list[str]:
    notes = []
    if any(one.protocol == "answer" for one in members):
        notes += [
            f"holds to: exact match shown to be above {100 * RULER:g} %, RULER's threshold (exact binomial "
            f"test at {ALPHA:g}), in order of length up to the first failure; RULER: the longest length "
            "above it, untested"
        ]
    else:
        notes += [
            f"holds to: perplexity shown to be within {100 * margin:g} % of the best shorter length's, in "
            f"order of length up to the first failure (one-sided tests at {ALPHA:g})",
            "uses: the longest length that is shown to be better than the next shorter one, on targets with "
            f"more than half of that as context (one-sided, Holm's correction over lengths, {ALPHA:g}); its "
            "gain with the 95 % interval",
        ]
    notes += dict.fromkeys(note for one in members if (note := _errors(one)))
    return notes


def _errors(one: Reach) -> str | None:
    """How often claims from so few or so uneven documents go too far; None where it is the nominal level."""
    few = one.documents < max(ERRORS) or one.effective < one.documents / EVEN
    if one.protocol == "answer" or one.short_of is not None or not few:
        return None
    nearest = max(n for n in ERRORS if n <= one.documents)
    low, high = ERRORS[nearest]
    return (
        f"documents are what is sampled: {one.documents}, as good as {one.effective:.0f} of one size; in "
        f"simulation such a claim went too far in {low:g} to {high:g} of 100"
    )


def _record(one: Reach, margin: float) -> dict[str, Any]:
    answered = one.protocol == "answer"
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {
        "task": one.task, "protocol": one.protocol, "model": one.model, "shortest": one.lengths[0],
        "longest": one.lengths[-1], "documents": one.documents, "targets": one.targets,
        "targets_hash": one.targets_hash, "margin": None if answered else margin,
        "holds_to": one.holds_to, "holds_at_least": str(one.holds_at_least).lower(),
        "ruler": one.ruler, "note": one.short_of or (one.missing and f"{one.missing} has no finished cell"),
    }  # fmt: skip
    if one.steps:
        step = one.steps[-1]
        row |= {
            "tested_last": step.length, "outcome": step.outcome, "against": step.against,
            "change": step.change, "change_low": step.low, "change_high": step.high, "exact": step.exact,
        }  # fmt: skip
    if one.gains:
        row["uses_at_least"] = str(one.uses_at_least).lower()
    if (gain := one.used) is not None:
        row |= {
            "uses": gain.length, "gain_over": gain.shorter, "gain": gain.nats.estimate,
            "gain_low": gain.nats.low, "gain_high": gain.nats.high, "gain_targets": gain.targets,
            "p_holm": gain.p_holm,
        }  # fmt: skip
    return row
