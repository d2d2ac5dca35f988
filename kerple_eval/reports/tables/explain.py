"""Why mean loss changed with length, as a table: see :mod:`kerple_eval.stats.context_gain`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.records.reader import RunReader
from kerple_eval.reports import escapes
from kerple_eval.reports.numbers import signed
from kerple_eval.reports.tables.explain_command import commands
from kerple_eval.reports.typeset import Table, TableCell, TableRow, check_format, records_table, typeset
from kerple_eval.stats.context_gain import LossChange, Part, explain
from kerple_eval.support.specs import whole_number
from kerple_eval.types import UserError

HEAD = ("model", "lengths", "change", "dilution", "context gain", "stride", "documents", "targets")
COLUMNS = (
    "model", "task", "protocol", "length_from", "length_to", "documents", "targets", "same_targets",
    "change", "change_low", "change_high", "dilution", "dilution_low", "dilution_high",
    "context_gain", "context_gain_low", "context_gain_high", "other_targets", "stride",
    "context_short_of", "needs",
)  # fmt: skip


def parse_pair(text: str | None) -> tuple[int, int] | None:
    """``512,4096`` -> two lengths, the shorter first."""
    if text is None:
        return None
    lengths = [whole_number(word.strip()) for word in text.split(",")]
    if len(lengths) != 2 or None in lengths or lengths[0] == lengths[1]:
        raise UserError(f"--length {text}: expected two different lengths, as in 512,4096 or 1k,16k")
    first, second = sorted(length for length in lengths if length is not None)
    return first, second


def make(folders: Sequence[str | Path], style: str = "text", lengths: tuple[int, int] | None = None) -> str:
    """Splits of one or several runs; nats per target, negative is better."""
    check_format(style)
    reader = RunReader(folders, keep=True)
    splits = explain(reader, lengths)
    if style == "csv":
        return typeset(records_table(COLUMNS, [_record(split) for split in splits]), style)
    blocks = [typeset(table, style) for table in _tables(splits)]
    if lines := _missing(splits, reader.folders, "explain"):
        if style == "markdown":
            lines = escapes.markdown_block("\n".join(lines))
        blocks.append("\n".join(f"% {line}" if style == "latex" else line for line in lines) + "\n")
    return "\n".join(blocks)


def tables(reader: RunReader) -> tuple[list[Table], list[str]]:
    """The tables that ``make`` prints, and how the cells that they lack are computed."""
    splits = explain(reader)
    return _tables(splits), _missing(splits, reader.folders, "report")


def _tables(splits: Sequence[LossChange]) -> list[Table]:
    groups: dict[tuple[str, str], list[LossChange]] = {}
    for split in splits:
        groups.setdefault((split.key.task, split.key.protocol), []).append(split)
    what = "change of mean loss with length, nats per target (negative is better)"
    return [
        Table(
            f"{task}, {protocol}: {what}", HEAD, tuple(map(_row, members)), _notes(members)
        ).without_empty_columns()
        for (task, protocol), members in groups.items()
    ]


def _missing(splits: Sequence[LossChange], folders: Sequence[str], command: str) -> list[str]:
    """The commands that compute the sliding-window cells that a split needs, and the one that uses them."""
    missing = commands(splits)
    if not missing:
        return []
    asked = shlex.join([*folders, *(words[-1] for words in missing)])  # --out is last
    lines = ["missing sliding-window cells are computed by", *(f"  {shlex.join(w)}" for w in missing)]
    lines += ["and then used by", f"  kerple-eval {command} {asked}"]
    return [escapes.printable(line) for line in lines]


def _row(split: LossChange) -> TableRow:
    stride = "" if split.stride is None else str(split.stride)
    return TableRow(
        (
            TableCell(split.label),
            TableCell(f"{split.key.length} -> {split.longer}"),
            _shown(split.change),
            _shown(split.dilution),
            _shown(split.context_gain),
            TableCell(stride, split.stride),
            TableCell(str(split.documents), split.documents),
            TableCell(f"{split.targets:,}", split.targets),
        )
    )


def _shown(part: Part | None) -> TableCell:
    if part is None:
        return TableCell("-", missing=True)
    value, *ends = map(signed, (part.value, *(part.interval or ())))
    return TableCell(f"{value} [{', '.join(ends)}]" if ends else value, part.value)


def _notes(splits: Sequence[LossChange]) -> tuple[str, ...]:
    notes = []
    for split in splits:
        subject = f"{split.label}, {split.key.length} -> {split.longer}"
        if not split.same_targets:
            split_of = (
                f"; the split is over those of both, the others add {signed(split.other_targets)}"
                if split.targets
                else ""
            )
            notes.append(f"warning: {subject}: the two lengths were computed on different targets{split_of}")
        if split.needs:
            notes.append(f"{subject}: not split: {split.needs}")
    for plan in splits[0].run.specification.protocols:
        if plan.protocol == splits[0].key.protocol and plan.reduction is not None:
            notes.append(f"the split is of the mean over targets; the protocol's nll is: {plan.reduction}")
    strides = {(s.key.length, s.stride, s.short_of) for s in splits if s.stride is not None}
    for length, stride, short in sorted(strides, key=lambda x: (x[0], x[1] or 0)):
        at = f"sliding-window at {length}, stride {stride}"
        exact = "exact" if short == 0 else f"its contexts fall short of {length} by {short:.1f} on average"
        notes.append(f"loss at context {length} measured by {at}: {exact}")
    few = [split for split in splits if split.targets and split.change.interval is None]
    if few:
        notes.append(f"not enough documents for an interval ({max(s.documents for s in few)}; 5 needed)")
    if any(split.change.interval for split in splits):
        notes.append("95 % intervals over documents (ratio of sums, linearised, t)")
    return tuple(dict.fromkeys(notes))


def _record(split: LossChange) -> dict[str, Any]:
    key, used = split.key, split.stride is not None
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {
        "model": split.label, "task": key.task, "protocol": key.protocol, "length_from": key.length,
        "length_to": split.longer, "documents": split.documents, "targets": split.targets,
        "same_targets": "true" if split.same_targets else "false", "other_targets": split.other_targets,
        "stride": split.stride, "context_short_of": split.short_of if used else None, "needs": split.needs,
    }  # fmt: skip
    for name in ("change", "dilution", "context_gain"):
        part: Part | None = getattr(split, name)
        if part is not None:
            low, high = part.interval or (None, None)
            row |= {name: part.value, f"{name}_low": low, f"{name}_high": high}
    return row
