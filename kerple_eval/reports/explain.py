"""Why mean loss changed with length, as a table: dilution and context gain (see ``explanation``)."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

from kerple_eval.catalogue import unknown
from kerple_eval.explanation import Part, Split, explain
from kerple_eval.explanation_command import commands
from kerple_eval.reports.rows import Listing
from kerple_eval.types import UserError

FORMATS = ("text", "markdown", "csv")
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
    words = [word.strip() for word in text.split(",")]
    if len(words) != 2 or not all(w.isascii() and w.isdigit() for w in words) or words[0] == words[1]:
        raise UserError(f"--length {text}: expected two different lengths, as in 512,4096")
    first, second = sorted(int(word) for word in words)
    return first, second


def render(folders: Sequence[str | Path], style: str = "text", lengths: tuple[int, int] | None = None) -> str:
    """Splits of one or several runs in one of ``FORMATS``; nats per target, negative is better."""
    if style not in FORMATS:
        raise unknown("format of an explanation", style, FORMATS)
    splits = explain(folders, lengths)
    if style == "csv":
        return _csv(splits)
    setter = _markdown if style == "markdown" else _text
    blocks = [setter(x.title, [HEAD, *(tuple(row) for row in x.rows)], x.notes) for x in _listings(splits)]
    if lines := _missing(splits, folders, "explain"):
        if style == "markdown":
            lines = ["```", *lines, "```"]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def explained(folders: Sequence[str | Path]) -> tuple[list[Listing], list[str]]:
    """The tables that ``render`` prints, and how the cells that they lack are computed."""
    splits = explain(folders)
    return _listings(splits), _missing(splits, folders, "report")


def _listings(splits: Sequence[Split]) -> list[Listing]:
    groups: dict[tuple[str, str], list[Split]] = {}
    for split in splits:
        groups.setdefault((split.key.task, split.key.protocol), []).append(split)
    what = "change of mean loss with length, nats per target (negative is better)"
    return [
        Listing(
            f"{task}, {protocol}: {what}", HEAD, [_row(s) for s in members], _notes(members), task, protocol
        )
        for (task, protocol), members in groups.items()
    ]


def _missing(splits: Sequence[Split], folders: Sequence[str | Path], command: str) -> list[str]:
    """The commands that compute the sliding-window cells that a split needs, and the one that uses them."""
    missing = commands(splits)
    if not missing:
        return []
    asked = shlex.join([*map(str, folders), *(words[-1] for words in missing)])  # --out is last
    lines = ["missing sliding-window cells are computed by", *(f"  {shlex.join(w)}" for w in missing)]
    return [*lines, "and then used by", f"  kerple-eval {command} {asked}"]


def _row(split: Split) -> tuple[str, ...]:
    stride = "" if split.stride is None else str(split.stride)
    return (
        split.key.model, f"{split.key.length} -> {split.longer}", _shown(split.change),
        _shown(split.dilution), _shown(split.context_gain), stride, str(split.documents),
        f"{split.targets:,}",
    )  # fmt: skip


def _shown(part: Part | None) -> str:
    if part is None:
        return "-"
    numbers = [f"{value:+.4f}" for value in (part.value, *(part.interval or ()))]
    value, *ends = ["0.0000" if number[1:] == "0.0000" else number for number in numbers]
    return f"{value} [{', '.join(ends)}]" if ends else value


def _notes(splits: Sequence[Split]) -> list[str]:
    notes = []
    for split in splits:
        who = f"{split.key.model}, {split.key.length} -> {split.longer}"
        if not split.same_targets:
            told = (
                f"; the split is over those of both, the others add {split.other_targets:+.4f}"
                if split.targets
                else ""
            )
            notes.append(f"warning: {who}: the two lengths were computed on different targets{told}")
        if split.needs:
            notes.append(f"{who}: not split: {split.needs}")
    for plan in splits[0].run.specification["protocols"]:
        if plan["protocol"] == splits[0].key.protocol and "reduction" in plan:
            notes.append(f"the split is of the mean over targets; the protocol's nll is: {plan['reduction']}")
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
    return list(dict.fromkeys(notes))


def _text(title: str, table: Sequence[tuple[str, ...]], notes: Sequence[str]) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    lines = [title, ""]
    for number, row in enumerate(table):
        cells = [
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
        if number == 0:
            lines.append("  " + "─" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join([*lines, "", *(f"  {note}" for note in notes)]) + "\n"


def _markdown(title: str, table: Sequence[tuple[str, ...]], notes: Sequence[str]) -> str:
    lines = [f"**{title}**", ""]
    for number, row in enumerate(table):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        if number == 0:
            lines.append("|---" + "|---:" * (len(HEAD) - 1) + "|")
    return "\n".join([*lines, "", *(f"* {note}" for note in notes)]) + "\n"


def _csv(splits: Sequence[Split]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for split in splits:
        key = split.key
        row = [key.model, key.task, key.protocol, key.length, split.longer, split.documents, split.targets]
        row += ["true" if split.same_targets else "false"]
        for part in (split.change, split.dilution, split.context_gain):
            row += [""] * 3 if part is None else [repr(part.value), *map(repr, part.interval or ())]
            row += [""] * (2 if part is not None and part.interval is None else 0)
        used = split.stride is not None
        row += [repr(split.other_targets), split.stride if used else "", repr(split.short_of) if used else ""]
        writer.writerow([*row, split.needs])
    return buffer.getvalue()
