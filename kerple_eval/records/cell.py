"""One cell on disk: every loss of a (model, task, protocol, length), or why there is none.

    cells/NAME.parquet   a finished cell, one row per window: :mod:`kerple_eval.records.columns`
    cells/NAME.json      a failed cell: its key, error and traceback

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kerple_eval.protocols.catalogue import make_protocol
from kerple_eval.records import reductions
from kerple_eval.records.columns import MOST_BYTES, Columns, header_of, read_columns, to_parquet
from kerple_eval.records.divergence import Divergence
from kerple_eval.records.header import CellHeader, FailedHeader, FinishedHeader
from kerple_eval.records.reductions import weighted_mean
from kerple_eval.records.schema import CELL_STEPS, SCHEMA_VERSION, up_to_date
from kerple_eval.support.files import write_atomically
from kerple_eval.support.readers import cannot_read, quoted, read_bytes, read_json
from kerple_eval.support.typed_json import from_json, to_json
from kerple_eval.types import CellKey, UserError, Window

Header = TypeVar("Header", bound=CellHeader)
SET_ASIDE = ".set-aside"  # ends the name of a cell's file while it counts as failed
COLUMNS = (
    "model", "scheme", "seed", "train_length", "task", "protocol", "length", "documents",
    "windows", "targets", "targets_hash", "nll", "ppl", "bits_per_byte", "dtype", "device",
    "status", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A finished cell: rows are windows in plan order; ``document`` indexes ``header.documents``."""

    key: CellKey
    header: FinishedHeader
    document: NDArray[np.int64]
    windows: Sequence[Window]
    losses: Sequence[NDArray[np.float32]]
    byte_counts: Sequence[int] | None
    hits: Sequence[NDArray[np.bool_]] | None = None  # whether each target was the argmax, where asked for
    divergence: Divergence | None = None  # from the reference of ``header.divergence``

    def summary(self) -> dict[str, Any]:
        """The cell's row of ``summary.csv``."""
        weights = self.weights
        nll = reductions.mean_loss(self.losses) if weights is None else weighted_mean(self.losses, weights)
        total = None if self.byte_counts is None else sum(self.byte_counts)
        return {
            **_identity(self.key, self.header),
            "documents": len(set(self.document.tolist())),
            "windows": len(self.windows),
            "targets": sum(window.targets for window in self.windows),
            "targets_hash": self.targets_hash,
            "nll": nll,
            "ppl": reductions.perplexity(nll),
            "bits_per_byte": reductions.bits_per_byte(self.losses, total),
            "dtype": self.header.dtype,
            "device": self.header.device,
            "status": "ok",
            "error": None,
        }

    @property
    def weights(self) -> list[float] | None:
        """What each window's mean loss weighs in ``nll``; None: its targets."""
        if self.header.reduction is None:
            return None
        return make_protocol(self.key.protocol)[0].weights(self.windows)

    def by_document(self) -> dict[str, list[NDArray[np.float32]]]:
        """Document name -> what scoring gave of its windows, in plan order: ``[rows, targets]``, losses, hits
        and divergences as far as the cell has them.
        """
        parts = [[row[None] for row in self.losses]]
        if self.hits is not None:
            parts.append([row[None].astype(np.float32) for row in self.hits])
        if self.divergence is not None:
            parts.append(self.divergence.rows())
        rows: dict[str, list[NDArray[np.float32]]] = {}
        for document, *row in zip(self.document.tolist(), *parts, strict=True):
            rows.setdefault(self.header.documents[document].name, []).append(np.concatenate(row))
        return rows

    @cached_property
    def targets_hash(self) -> str:
        """Hash of the target set: documents (by their tokens) and the scored targets of each.

        Windows do not enter, so full-context and sliding-window of one document agree at every
        length; a target scored twice counts twice.
        """
        spans: dict[int, list[tuple[int, int]]] = {}
        for document, window in zip(self.document.tolist(), self.windows, strict=True):
            spans.setdefault(document, []).append((window.first_target, window.stop + 1))
        digest = hashlib.sha256()
        documents = self.header.documents
        for document in sorted(spans, key=lambda d: documents[d].name):
            digest.update(json.dumps([documents[document].sha256, _merge(spans[document])]).encode())
        return digest.hexdigest()[:16]


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged


@dataclass(frozen=True)
class FailedCell:
    key: CellKey
    header: FailedHeader
    error: str

    def summary(self) -> dict[str, Any]:
        return {
            **dict.fromkeys(COLUMNS),
            **_identity(self.key, self.header),
            "dtype": self.header.dtype,
            "device": self.header.device,
            "status": "failed",
            "error": self.error,
        }


def _identity(key: CellKey, header: CellHeader) -> dict[str, Any]:
    return {
        "model": key.model,
        "scheme": header.scheme,
        "seed": header.seed,
        "train_length": header.train_length,
        "task": key.task,
        "protocol": key.protocol,
        "length": key.length,
    }


def file_name(key: CellKey) -> str:
    """Readable, safe on every file system, unique through a hash of the key."""
    parts = [key.model, key.task, key.protocol, str(key.length)]
    readable = "--".join(re.sub(r"[^A-Za-z0-9.=-]+", "_", part)[:40] for part in parts)
    digest = hashlib.sha256(json.dumps(asdict(key), sort_keys=True).encode()).hexdigest()[:10]
    return f"{readable}--{digest}"


def write_cell(folder: Path, cell: Cell) -> None:
    names = [document.name for document in cell.header.documents]
    header = {"schema_version": SCHEMA_VERSION, "cell": asdict(cell.key), **to_json(cell.header)}
    columns = Columns(cell.document, cell.windows, cell.losses, cell.byte_counts, cell.hits, cell.divergence)
    name = file_name(cell.key)
    write_atomically(folder / "cells" / f"{name}.parquet", to_parquet(columns, names, header))
    for other in (".json", SET_ASIDE):
        (folder / "cells" / f"{name}{other}").unlink(missing_ok=True)


def write_failure(folder: Path, cell: FailedCell) -> None:
    content = {
        "schema_version": SCHEMA_VERSION,
        "cell": asdict(cell.key),
        "error": cell.error,
        **to_json(cell.header),
    }
    path = folder / "cells" / f"{file_name(cell.key)}.json"
    write_atomically(path, json.dumps(content, indent=2).encode() + b"\n")
    finished = folder / "cells" / f"{file_name(cell.key)}.parquet"
    if _exists(finished):  # of a cell that documents were to be added to
        finished.replace(folder / "cells" / f"{file_name(cell.key)}{SET_ASIDE}")


def take_back(folder: Path, key: CellKey) -> None:
    """Make a cell that failed while documents were added to it what it was before, where that is there."""
    aside = folder / "cells" / f"{file_name(key)}{SET_ASIDE}"
    if _exists(aside):
        aside.replace(folder / "cells" / f"{file_name(key)}.parquet")
        (folder / "cells" / f"{file_name(key)}.json").unlink(missing_ok=True)


def read_cell(folder: Path, key: CellKey) -> Cell | FailedCell | None:
    """The cell as it stands on disk; None where it has not been run.

    Raises:
        UserError: the file cannot be read, or is not the cell as it was written.
    """
    path = folder / "cells" / f"{file_name(key)}.parquet"
    if _exists(path):
        raw = read_bytes(path, MOST_BYTES)
        with _readable(path):
            return _from_parquet(raw, path, key)
    failure = path.with_suffix(".json")
    if _exists(failure):
        content = read_json(failure)
        with _readable(failure):
            error = content.pop("error", None)
            if not isinstance(error, str):
                raise ValueError("it has no error")
            return FailedCell(key, _checked(FailedHeader, content, failure, key), error)
    return None


def _exists(path: Path) -> bool:
    """Whether anything has that name; a link to nothing is a damaged cell, not one that was never run."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError) as error:
        raise UserError(cannot_read(path, error)) from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What a damaged file raises becomes one line that names it."""
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except (
        pa.ArrowException, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError,
        OverflowError, MemoryError,
    ) as error:  # fmt: skip
        kind = f"{type(error).__name__} " if isinstance(error, LookupError) else ""
        reason = kind + " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: not a readable cell ({reason}); delete it to have it computed again"
        ) from None


def _from_parquet(raw: bytes, path: Path, key: CellKey) -> Cell:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    content, hashes = header_of(pq.read_schema(pa.BufferReader(raw)))
    header = _checked(FinishedHeader, content, path, key)
    if hashes is None and header.verified is not False:
        raise ValueError("it has no sha256")
    columns = read_columns(raw, header.documents)
    if hashes is not None and columns.sha256 != hashes.get("columns"):
        raise ValueError("its columns do not have the sha256 they were written with")
    said = header.divergence is not None and header.divergence.error is None
    if said != (columns.divergence is not None):
        raise ValueError("its header and its columns disagree on whether it holds divergences")
    if columns.divergence is not None and (hashes or {}).get("divergence") != columns.divergence.sha256:
        raise ValueError("its divergences do not have the sha256 they were written with")
    return Cell(
        key, header, columns.document, columns.windows, columns.losses, columns.byte_counts, columns.hits,
        columns.divergence,
    )  # fmt: skip


def _checked(kind: type[Header], content: dict[str, Any], path: Path, key: CellKey) -> Header:
    """The header as this release writes it, without what the file's own name and version say."""
    content = up_to_date(content, CELL_STEPS, path)
    if content.get("cell") != asdict(key):
        raise ValueError(f"it holds the cell {quoted(content.get('cell'))}")
    rest = {name: value for name, value in content.items() if name not in ("cell", "schema_version")}
    try:
        header = from_json(kind, rest, "header")
    except UserError as error:
        raise ValueError(str(error)) from None
    if isinstance(header, FinishedHeader):
        names = [document.name for document in header.documents]
        if len(set(names)) < len(names):
            raise ValueError("two documents have one name")
    return header
