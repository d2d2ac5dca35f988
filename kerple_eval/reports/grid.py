"""Summaries of one or several runs as grids: one a (task, protocol), models down, lengths across.

Reads ``summary.csv`` and ``run.json`` only: no torch, no pandas, no losses.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kerple_eval.records.cell import COLUMNS
from kerple_eval.records.notes import feeding_notes, text_notes
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import Run, own_label
from kerple_eval.reports.numbers import number
from kerple_eval.stats.groups import identities
from kerple_eval.support.readers import LARGEST_JSON, quoted, read_bytes
from kerple_eval.support.registry import unknown
from kerple_eval.types import CellKey, UserError

WHOLE = frozenset({"seed", "train_length", "length", "documents", "windows", "targets"})
REAL = frozenset({"nll", "ppl", "bits_per_byte"})
ALWAYS = ("model", "scheme", "task", "protocol", "length", "dtype", "device")  # columns filled in every row
MEASURED = ("documents", "windows", "targets", "targets_hash", "nll")  # and in those of finished cells
_AGAIN = "delete it, and the run's command writes it anew"
VALUES = {
    "ppl": "perplexity",
    "bits_per_byte": "bits per byte",
    "nll": "nats per target",
}


@dataclass(frozen=True, slots=True)
class GridEntry:
    """One cell of a grid: its row of ``summary.csv`` with numbers as numbers, its run and its key there."""

    row: dict[str, Any]
    folder: Path
    key: CellKey

    @property
    def ok(self) -> bool:
        return bool(self.row["status"] == "ok")


@dataclass
class Grid:
    """Cells of one (task, protocol)."""

    task: str
    protocol: str
    models: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    entries: dict[tuple[str, int], GridEntry] = field(default_factory=dict)
    tokenizers: set[str] = field(default_factory=set)  # one where token ids were given
    weighted: bool = False  # whether nll is another tool's weighted mean
    identities: dict[str, str] = field(default_factory=dict)  # model -> all it is but for seed and weights
    text_notes: list[str] = field(default_factory=list)  # on how models read the text

    def trained(self, model: str) -> int | None:
        for length in self.lengths:
            if entry := self.entries.get((model, length)):
                value = entry.row["train_length"]
                return int(value) if value is not None else None
        return None

    @property
    def shared_train_length(self) -> int | None:
        """The trained length where all models have the same one."""
        lengths = {self.trained(model) for model in self.models}
        return lengths.pop() if len(lengths) == 1 else None

    @property
    def trained_lengths(self) -> set[int]:
        """Those of any model that are lengths of the grid."""
        return {n for model in self.models if (n := self.trained(model)) is not None and n in self.lengths}

    def column(self, length: int) -> list[GridEntry]:
        """Finished cells of one length."""
        cells = (self.entries.get((model, length)) for model in self.models)
        return [cell for cell in cells if cell is not None and cell.ok]

    def same_targets(self, length: int) -> bool:
        """Whether every finished cell of the length scored the same targets."""
        return len({cell.row["targets_hash"] for cell in self.column(length)}) <= 1

    def bytes_scored(self, length: int) -> set[int]:
        """UTF-8 bytes that finished cells of a length scored; empty where the rows do not say."""
        rows = [cell.row for cell in self.column(length)]
        if self.weighted or not all(row["bits_per_byte"] for row in rows):
            return set()
        return {round(row["targets"] * row["nll"] / (math.log(2) * row["bits_per_byte"])) for row in rows}

    @property
    def other_bytes(self) -> str | None:
        """Where bits per byte across tokenisers are not known to be of one text; None where they are."""
        if len(self.tokenizers) == 1 or self.values() != ["bits_per_byte"]:
            return None
        sizes = {n: self.bytes_scored(n) for n in self.lengths if len(self.column(n)) > 1}
        parts = [
            f"{n}: {_one(found) if found else 'not known'}" for n, found in sizes.items() if len(found) != 1
        ]
        return f"other bytes scored across models ({'; '.join(parts)}): no best marked" if parts else None

    def differs_between_lengths(self) -> bool:
        """Whether a model's finished cells were computed on different targets."""
        hashes: dict[str, set[str]] = {}
        for (model, _), cell in self.entries.items():
            if cell.ok:
                hashes.setdefault(model, set()).add(cell.row["targets_hash"])
        return any(len(found) > 1 for found in hashes.values())

    def best(self, length: int, value: str) -> set[str]:
        """Models with the lowest value at a length, as shown; none where one is alone or targets differ, or
        across tokenisers the bytes scored."""
        cells = {
            model: entry.row[value]
            for model in self.models
            if (entry := self.entries.get((model, length))) and entry.ok and entry.row[value] is not None
        }
        across = value == "bits_per_byte" and len(self.tokenizers) > 1
        comparable = len(self.bytes_scored(length)) == 1 if across else self.same_targets(length)
        if len(cells) < 2 or not comparable:
            return set()
        lowest = number(min(cells.values()))
        return {model for model, found in cells.items() if number(found) == lowest}

    def values(self) -> list[str]:
        """Perplexity and, where bytes are known, bits per byte; only that across tokenisers."""
        ok = [entry for entry in self.entries.values() if entry.ok]
        known = bool(ok) and all(entry.row["bits_per_byte"] is not None for entry in ok)
        if len(self.tokenizers) > 1 and known:
            return ["bits_per_byte"]
        return ["ppl", "bits_per_byte"] if known else ["ppl"]

    def notes(self) -> list[str]:
        """What a reader must know before comparing numbers of this grid."""
        lines = []
        if len(self.tokenizers) > 1:
            lines.append("models with different tokenisers: compare bits per byte, not perplexity")
        if self.other_bytes:
            lines.append(f"warning: {self.other_bytes}")
        mixed = [length for length in self.lengths if not self.same_targets(length)]
        if mixed and len(self.tokenizers) == 1:
            lines.append(f"different targets across models at {', '.join(map(str, mixed))}: no best marked")
        counts = {length: {cell.row["targets"] for cell in self.column(length)} for length in self.lengths}
        hashes = {cell.row["targets_hash"] for length in self.lengths for cell in self.column(length)}
        documents = {cell.row["documents"] for length in self.lengths for cell in self.column(length)}
        if len(hashes) == 1 and not mixed:
            lines.append(
                f"{_one(documents)} {'document' if documents == {1} else 'documents'}, "
                f"{_one(set().union(*counts.values()))} targets, "
                f"the same at every length (hash {hashes.pop()})"
            )
        elif self.differs_between_lengths():
            parts = [f"{length}: {_one(counts[length])}" for length in self.lengths if counts[length]]
            lines.append(
                f"warning: targets differ between lengths ({'; '.join(parts)}): a change along a row mixes "
                "length with other targets"
            )
        for (model, length), entry in self.entries.items():
            if not entry.ok:
                lines.append(f"{model} at {length} failed: {entry.row['error']}")
        return lines + self.text_notes


def _one(values: set[Any]) -> str:
    return " or ".join(f"{value:,}" for value in sorted(values))


def read_grids(reader: RunReader, models: Sequence[str] = ()) -> list[Grid]:
    """Grids of several runs together; where two hold a model of one name, the run's name joins it.

    Of ``models`` alone where any are given; UserError where there is none of that label.
    """
    grids: dict[tuple[str, str], Grid] = {}
    labels: dict[str, None] = {}
    owners: dict[tuple[str, str], dict[str, str]] = {}
    for run in reader.runs:
        readers = {model.label: str(model.tokenizer) for model in run.specification.models}
        known = identities(run)
        weighted = {plan.protocol for plan in run.specification.protocols if plan.reduction is not None}
        for key, row in _rows_of(run):
            name = (row["task"], row["protocol"])
            label = own_label(row["model"], run.folder, owners.setdefault(name, {}))
            labels[label] = None
            if models and label not in models:
                continue
            grid = grids.setdefault(name, Grid(*name))
            if label not in grid.models:
                grid.models.append(label)
                notes = text_notes(run.specification, row["model"], grid.task, grid.protocol)
                notes += feeding_notes(run.provenance, row["model"])
                grid.text_notes += [f"{label}: {note}" for note in notes]
            if row["length"] not in grid.lengths:
                grid.lengths = sorted([*grid.lengths, row["length"]])
            grid.tokenizers.add("" if grid.task == "tokens" else readers[row["model"]])
            grid.weighted = grid.protocol in weighted
            grid.identities[label] = known[row["model"]]
            grid.entries[label, row["length"]] = GridEntry(row, run.folder, key)
    if not labels:
        raise UserError(f"{reader.names}: no cell has been run yet")
    for model in models:
        if model not in labels:
            raise unknown("model", model, labels)
    return list(grids.values())


def model_names(grids: Sequence[Grid], against: str | None = None) -> list[str]:
    """Models of all grids, in their order; ``against``, where given, must be one of them."""
    names = list(dict.fromkeys(model for grid in grids for model in grid.models))
    if against is not None and against not in names:
        raise unknown("model", against, names)
    return names


def chosen(grids: Sequence[Grid], task: str | None, protocol: str | None) -> list[Grid]:
    """The grids of one task or protocol, where given; UserError where none has it."""
    for what, wanted in (("task", task), ("protocol", protocol)):
        known = dict.fromkeys(getattr(grid, what) for grid in grids)
        if wanted is not None and wanted not in known:
            raise unknown(what, wanted, known)
    return [g for g in grids if task in (None, g.task) and protocol in (None, g.protocol)]


def _rows_of(run: Run) -> Iterator[tuple[CellKey, dict[str, Any]]]:
    """The rows of a run's summary, each of a cell that ``run.json`` asks for, and of each cell one."""
    path = run.folder / "summary.csv"
    asked = run.keys()
    keys = {(key.model, key.task, key.protocol, key.length): key for key in asked}
    seen: set[CellKey] = set()
    for row in _rows(path):
        key = keys.get((row["model"], row["task"], row["protocol"], row["length"]))
        if key is None:
            name = ", ".join(str(row[column]) for column in ("model", "task", "protocol", "length"))
            raise UserError(
                f"{path}: a row of {quoted(name)}, a cell that run.json does not ask for; {_AGAIN}"
            )
        if key in seen:
            raise UserError(f"{path}: two rows of {key}; {_AGAIN}")
        seen.add(key)
        model = run.specification.model(key.model)
        for column in ("scheme", "seed", "train_length"):
            if row[column] != getattr(model, column):
                raise UserError(
                    f"{path}: {column} of {key} is {quoted(row[column])}, in run.json "
                    f"{quoted(getattr(model, column))}; {_AGAIN}"
                )
        yield key, row


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``summary.csv``, numbers as numbers; None is an empty field."""
    try:
        file = io.StringIO(read_bytes(path, LARGEST_JSON).decode("utf-8"), newline="")
        reader = csv.reader(file, strict=True)
        if tuple(next(reader, ())) != COLUMNS:
            raise UserError(f"{path}: not a summary: its columns are not the contract's; {_AGAIN}")
        return [_typed(row) for row in reader]
    except (ValueError, csv.Error) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise UserError(f"{path}: damaged: {reason}; {_AGAIN}") from None


def _typed(fields: Sequence[str]) -> dict[str, Any]:
    """Raises ValueError, with what is wrong, where a field cannot be what ``summary.csv`` holds."""
    if len(fields) != len(COLUMNS):
        raise ValueError(f"a row of {len(fields)} fields, expected {len(COLUMNS)}: {quoted(fields)}")
    row: dict[str, Any] = {}
    for column, text in zip(COLUMNS, fields, strict=True):
        row[column] = None if text == "" else _value(column, text)
    if row["status"] not in ("ok", "failed"):
        raise ValueError(f"status {quoted(row['status'])}, expected ok or failed")
    needed = ALWAYS + (MEASURED if row["status"] == "ok" else ())
    for column in needed:
        if row[column] is None:
            raise ValueError(f"no {column} in the row {quoted(fields)}")
    return row


def _value(column: str, text: str) -> int | float | str:
    if column in WHOLE:
        if not re.fullmatch(r"-?[0-9]{1,19}" if column == "seed" else r"[0-9]{1,18}", text):
            raise ValueError(f"{column} {quoted(text)}, expected a whole number")
        return int(text)
    if column not in REAL:
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{column} {quoted(text)}, expected a number of at least 0")
    return value
