"""Finished cells of chosen losses by document, and run directories that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerple_eval.records.cell import Cell, write_cell
from kerple_eval.records.run import write_summary
from kerple_eval.stats.documents import Scored, scored
from kerple_eval.types import CellKey, Window
from tests.helpers.records import header, model, write_run_json


def cell(
    label: str,
    documents: Mapping[str, Sequence[float]],
    *,
    scheme: str = "log",
    seed: int | None = 1,
    length: int = 64,
    spelled: int | None = 2,
    window: int = 3,
) -> Cell:
    """One document a name, its losses target by target, in windows of ``window`` targets."""
    windows, losses, index = [], [], []
    for i, values in enumerate(documents.values()):
        for start in range(0, len(values), window):
            part = np.asarray(values[start : start + window], dtype=np.float32)
            windows.append(Window(start, start + len(part), start + 1))
            losses.append(part)
            index.append(i)
    facts = header(
        [(n, len(v) + 1, f"{i} {len(v)}") for i, (n, v) in enumerate(documents.items())],
        scheme=scheme,
        seed=seed,
        train_length=64,
    )
    counts = None if spelled is None else [spelled * len(row) for row in losses]
    key = CellKey(label, "book", "full-context", length)
    return Cell(key, facts, np.array(index, dtype=np.int64), windows, losses, counts)


def drawn(seed: int, sizes: Sequence[int], mean: float = 2.0, spread: float = 0.3) -> dict[str, list[float]]:
    """Documents ``d00``, ``d01``, ... of the given sizes; a document's losses share a level of its own."""
    rng = np.random.default_rng(seed)
    return {
        f"d{i:02d}": (mean + spread * rng.standard_normal() + 0.1 * rng.standard_normal(size)).tolist()
        for i, size in enumerate(sizes)
    }


def shifted(documents: Mapping[str, Sequence[float]], by: Sequence[float]) -> dict[str, list[float]]:
    """Document i's losses with ``by[i]`` nats added to each."""
    return {n: [x + by[i] for x in v] for i, (n, v) in enumerate(documents.items())}


def reduced(model: str, documents: Mapping[str, Sequence[float]], **options: object) -> Scored:
    return scored(cell(model, documents, **options))  # type: ignore[arg-type]


def write_finished(folder: Path, cells: Sequence[Cell]) -> Path:
    """``write_cells`` with their summary."""
    write_cells(folder, cells)
    write_summary(folder, [one.summary() for one in cells])
    return folder


def write_cells(
    folder: Path, cells: Sequence[Cell], *, tasks: Sequence[Any] = ("book",), **specification: object
) -> Path:
    """A run directory of these cells, all of one task and protocol."""
    models = {c.key.model: c for c in cells}
    lengths = sorted({c.key.length for c in cells}) or [64]
    write_run_json(
        folder,
        models=[
            model(label, scheme=c.header.scheme, seed=c.header.seed, tokenizer="bytes", weights_sha256=label)
            for label, c in models.items()
        ],
        tasks=tasks,
        protocols=[{"protocol": "full-context", "lengths": lengths, "longest": None}],
        **specification,
    )
    for one in cells:
        write_cell(folder, one)
    return folder
