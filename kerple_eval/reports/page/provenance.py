"""Where every number of a page came from: cells, models, texts, commands and versions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from kerple_eval.records.cell import Cell, file_name
from kerple_eval.records.run import Run
from kerple_eval.records.specification import Session
from kerple_eval.reports.page.blocks import Block, Facts, Heading, Section
from kerple_eval.reports.page.gathered import Gathered, PageCell
from kerple_eval.reports.typeset import Table, TableCell, TableRow
from kerple_eval.support.typed_json import to_json

HEAD = (
    "model", "task", "protocol", "length", "nats per target", "perplexity", "bits per byte", "documents",
    "windows", "targets", "targets hash", "status", "dtype", "device", "seconds", "weights sha256", "run",
    "file",
)  # fmt: skip
_WORDS = frozenset({0, 1, 2, 10, 11, 12, 13, 15, 16, 17})


def provenance(data: Gathered) -> Section:
    blocks: list[Block] = [
        Heading("Cells"),
        Table(
            "Every cell: a row a number of the tables above",
            HEAD,
            tuple(_cell(data, page_cell) for page_cell in data.cells()),
            (
                "numbers to eight digits; summary.csv has them in full, the file every loss",
                "the targets hash covers the documents' tokens and the spans of scored targets",
                "files are named within the run's folder; those not there when this page was made are "
                "marked, and a page that was moved or committed without its cells names files that did not "
                "come along",
            ),
            _WORDS,
        ),
    ]
    for number, run in enumerate(data.runs, 1):
        blocks += _run(number, run)
    return Section("Provenance", "provenance", tuple(blocks))


def _cell(data: Gathered, page_cell: PageCell) -> TableRow:
    entry, row = page_cell.entry, page_cell.entry.row
    cell = data.reader.cell(entry.folder, entry.key) if entry.ok else None
    header = cell.header if isinstance(cell, Cell) else None
    number = data.run_of(entry)
    models = data.runs[number - 1].specification.models
    recorded = next((model.weights_sha256 for model in models if model.label == row["model"]), "")
    weights = (header.weights_sha256 if header else None) or recorded
    ending = ".parquet" if entry.ok else ".json"
    file = f"cells/{file_name(entry.key)}{ending}"
    mark = "" if (entry.folder / file).exists() else " (not here)"
    if header is not None and header.verified is False:
        mark = " (not verified: written before 0.2, without checksums)"
    values = (
        TableCell(page_cell.label), TableCell(row["task"]), TableCell(row["protocol"]),
        TableCell(str(row["length"]), row["length"]),
        _number(row["nll"]), _number(row["ppl"]), _number(row["bits_per_byte"]),
        *(_whole(row[key]) for key in ("documents", "windows", "targets")),
        TableCell(row["targets_hash"] or "", code=True), TableCell(row["status"]),
        TableCell(row["dtype"] or ""),
        TableCell(row["device"] or ""), _seconds(header.seconds if header else None),
        TableCell(weights[:16], link=f"models-{number}" if weights else "", code=True),
        TableCell(f"{number}: {entry.folder.resolve().name}", link=f"run-{number}"),
        TableCell(file, code=True, mark=mark),
    )  # fmt: skip
    return TableRow(values, anchor=page_cell.anchor)


def _number(value: float | None) -> TableCell:
    return TableCell("", missing=True) if value is None else TableCell(f"{value:#.8g}", value)


def _seconds(value: float | None) -> TableCell:
    return TableCell("", missing=True) if value is None else TableCell(f"{value:.1f}", value)


def _whole(value: int | None) -> TableCell:
    return TableCell("", missing=True) if value is None else TableCell(f"{value:,}", value)


def _run(number: int, run: Run) -> list[Block]:
    spec = run.specification
    arguments = run.provenance.models
    models = tuple(
        TableRow(
            (
                TableCell(m.label), TableCell(arguments.get(m.label, ""), code=True),
                TableCell(m.format), TableCell(m.scheme), _plain(m.train_length),
                _plain(m.seed), _plain(m.parameters), TableCell(m.tokenizer or ""),
                TableCell(m.weights_sha256, code=True),
            )
        )
        for m in spec.models
    )  # fmt: skip
    head = ("model", "given as", "format", "scheme", "trained at", "seed", "parameters", "tokeniser",
            "weights sha256")  # fmt: skip
    blocks: list[Block] = [
        Heading(f"Run {number}: {run.folder.resolve().name}", f"run-{number}"),
        _sessions(run.provenance.sessions),
        Heading(f"Models of run {number}", f"models-{number}"),
        Table("Checkpoints as they were scored", head, models, (), frozenset({0, 1, 2, 3, 7, 8})),
        Heading(f"Texts of run {number}", f"texts-{number}"),
    ]
    for task in spec.tasks:
        pairs = [(key, value) for key, value in _flat(to_json(task)) if value]
        blocks.append(Facts(tuple((key, TableCell(value, code="sha256" in key)) for key, value in pairs)))
    return blocks


def _plain(value: int | None) -> TableCell:
    return TableCell("", missing=True) if value is None else TableCell(f"{value:,}", value)


def _sessions(sessions: Sequence[Session]) -> Table:
    """Every command that added to the run, with what it ran on."""
    keys = ("began", "kerple_eval", "torch", "python", "platform", "device", "threads")
    rows = tuple(
        TableRow(
            (
                *(TableCell(str(getattr(session, key))) for key in keys),
                TableCell(
                    shlex.join(["kerple-eval", *session.command[1:]]),
                    code=True,
                    mark=" (asked from Python)" if session.from_python else "",
                ),
            )
        )
        for session in sessions
    )
    head = ("began", "kerple-eval", "torch", "Python", "platform", "processor", "threads", "command")
    words = frozenset(range(len(head))) - {6}
    return Table("Commands that wrote to this run", head, rows, (), words)


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Leaves of a record by dotted name."""
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in _flat(part, f"{name}.{key}" if name else key)]
    return [(name, "" if value is None else str(value))]
