"""Where a change of loss between two lengths comes from: see :mod:`kerple_eval.stats.gain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import Run, own_label
from kerple_eval.reports.numbers import signed
from kerple_eval.reports.typeset import Table, TableCell, TableRow, check_format, records_table, typeset
from kerple_eval.stats.gain import NGRAM, GainSources, Share, Span, document_changes, gain_sources
from kerple_eval.support.registry import unknown
from kerple_eval.types import CellKey, UserError

HEAD = ("", "targets", "shorter", "longer", "part (nats)", "share")
SPAN_HEAD = ("text", "document", "targets", "nats")
COLUMNS = (
    "model", "task", "protocol", "length_from", "length_to", "by", "class", "targets", "nll_from", "nll_to",
    "part", "share",
)  # fmt: skip
Found = tuple[CellKey, CellKey, GainSources]


def make(
    folders: Sequence[str | Path], style: str = "text", *, lengths: tuple[int, int] | None = None,
    model: str | None = None, protocol: str | None = None, ngram: int = NGRAM,
) -> str:  # fmt: skip
    """By where each target was seen before, by kind of token, and the spans that changed most."""
    check_format(style)
    found = read(RunReader(folders), lengths, model, protocol, ngram)
    if style == "csv":
        return typeset(records_table(COLUMNS, [row for one in found for row in _records(one)]), style)
    return "\n".join(typeset(table, style) for one in found for table in tables(one, ngram))


def read(
    reader: RunReader, lengths: tuple[int, int] | None = None, model: str | None = None,
    protocol: str | None = None, ngram: int = NGRAM,
) -> list[Found]:  # fmt: skip
    """The change from the shortest to the longest length, or between the two given, of each model.

    Raises:
        UserError: no model has two finished cells of one protocol; a text cannot be read again.
    """
    return [sources(*pair, ngram) for pair in pairs(reader, lengths, model, protocol)]


def sources(label: str, run: Run, one: Cell, two: Cell, ngram: int = NGRAM) -> Found:
    """Of a pair, its keys under the model's label; reads its text again."""
    from kerple_eval.evaluation.scored_text import scored_text  # noqa: PLC0415 - opens tokenisers

    keys = replace(one.key, model=label), replace(two.key, model=label)
    return *keys, gain_sources(document_changes(one, two, scored_text(run, one)), ngram)


def pairs(
    reader: RunReader, lengths: tuple[int, int] | None = None, model: str | None = None,
    protocol: str | None = None,
) -> list[tuple[str, Run, Cell, Cell]]:  # fmt: skip
    """The model's label among the runs, its run, the shorter and the longer cell of each model, text and
    protocol that has two.
    """
    for what, name, known in (
        ("model", model, [m.label for run in reader.runs for m in run.specification.models]),
        ("protocol", protocol, [p.protocol for run in reader.runs for p in run.specification.protocols]),
    ):
        if name is not None and name not in known:
            raise unknown(f"{what} of {reader.names}", name, dict.fromkeys(known))
    owners: dict[tuple[str, str], dict[str, str]] = {}
    found = []
    for run in reader.runs:
        groups: dict[tuple[str, str, str], list[CellKey]] = {}
        every = run.keys()
        for key in every:
            if model in (None, key.model) and protocol in (None, key.protocol):
                groups.setdefault((key.model, key.task, key.protocol), []).append(key)
        for (name, *_), keys in groups.items():
            wanted = [key for key in keys if lengths is None or key.length in lengths]
            cells = [cell for key in wanted if isinstance(cell := reader.cell(run.folder, key), Cell)]
            cells.sort(key=lambda cell: cell.key.length)
            if len(cells) >= 2:
                label = own_label(name, run.folder, owners.setdefault((keys[0].task, keys[0].protocol), {}))
                found.append((label, run, cells[0], cells[-1]))
    if not found:
        asked = f" {lengths[0]} and {lengths[1]}" if lengths else ""
        raise UserError(
            f"{reader.names}: no model has two finished cells of one protocol at two lengths{asked}; run "
            "with --length 512,1024 or more"
        )
    return found


def tables(found: Found, ngram: int = NGRAM) -> list[Table]:
    """Two tables of classes, and one of spans."""
    one, two, sources = found
    title = f"{one.task}, {one.protocol}: {one.model}, {one.length} -> {two.length}"
    note = f"seen: the target after the same {ngram} tokens; parts add up to the change, in nats per target"
    if not sources.kinds:
        note += "; no kinds of token: token ids were given, or the tokeniser loses too much of the text"
    made = [_shares(f"{title}: by where the target was seen before", sources, sources.origins, note)]
    if sources.kinds:
        made.append(_shares(f"{title}: by kind of token", sources, sources.kinds))
    rows = [
        _span(span, group)
        for group, spans in (("gained most", sources.gained), ("lost most", sources.lost))
        for span in spans
    ]
    if rows:
        made.append(
            Table(f"{title}: spans that changed most", SPAN_HEAD, tuple(rows), (), frozenset({0, 1, 2}))
        )
    return made


def _shares(title: str, sources: GainSources, shares: Sequence[Share], *notes: str) -> Table:
    rows = [
        TableRow(
            (
                TableCell(share.name),
                TableCell(f"{share.targets:,}", share.targets),
                *(TableCell(f"{loss:.4f}", loss) for loss in share.losses),
                TableCell(signed(share.part), share.part),
                _percent(share.part, sources.change),
            ),
            rule_below=share is shares[-1],
        )
        for share in shares
    ]
    total = (TableCell(f"{sources.targets:,}", sources.targets), TableCell(""), TableCell(""))
    change = TableCell(signed(sources.change), sources.change)
    rows.append(TableRow((TableCell("all"), *total, change, TableCell(""))))
    return Table(title, HEAD, tuple(rows), notes)


def _percent(part: float, change: float) -> TableCell:
    """Empty where there is no change to share out."""
    if abs(change) < 5e-7:
        return TableCell("", missing=True)
    return TableCell(f"{100 * part / change:.1f} %", part / change)


def _span(span: Span, group: str) -> TableRow:
    cells = (TableCell(span.document), TableCell(f"{span.first}..{span.last}"))
    return TableRow(
        (TableCell(span.text, code=True), *cells, TableCell(signed(span.change, 2), span.change)), group=group
    )


def _records(found: Found) -> Iterator[dict[str, Any]]:
    one, two, sources = found
    for by, shares in (("seen before", sources.origins), ("kind of token", sources.kinds)):
        for share in shares:
            yield {
                "model": one.model, "task": one.task, "protocol": one.protocol, "length_from": one.length,
                "length_to": two.length, "by": by, "class": share.name, "targets": share.targets,
                "nll_from": share.losses[0], "nll_to": share.losses[1], "part": share.part,
                "share": share.part / sources.change if sources.change else None,
            }  # fmt: skip
