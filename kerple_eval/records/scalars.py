"""A cell's numbers by name, as experiment trackers keep them.

``TASK/PROTOCOL/LENGTH/METRIC`` with the metrics ``nll`` (nats per target), ``ppl``, ``bits_per_byte`` where
bytes are known and ``exact_match`` where answers were scored.
"""

from __future__ import annotations

from kerple_eval.records.answers import answers
from kerple_eval.records.cell import Cell
from kerple_eval.records.specification import ModelRecord


def scalars(cell: Cell) -> dict[str, float]:
    """Name -> value; what is unknown or beyond the largest float is left out."""
    row = cell.summary()
    values = {metric: row[metric] for metric in ("nll", "ppl", "bits_per_byte")}
    if cell.hits is not None:
        exact = [answer.exact for answer in answers(cell)]
        values["exact_match"] = sum(exact) / len(exact)
    return {f"{_name(cell)}/{metric}": value for metric, value in values.items() if value is not None}


def facts(model: ModelRecord, cell: Cell) -> dict[str, object]:
    """What the model is, and under ``TASK/PROTOCOL/LENGTH`` the cell's targets: their count and hash."""
    row = cell.summary()
    known = {key: getattr(model, key) for key in ("format", "scheme", "seed", "train_length", "parameters")}
    known[_name(cell)] = f"{row['targets']} targets, hash {row['targets_hash']}"
    return {key: value for key, value in known.items() if value is not None}


def _name(cell: Cell) -> str:
    return f"{cell.key.task}/{cell.key.protocol}/{cell.key.length}"
