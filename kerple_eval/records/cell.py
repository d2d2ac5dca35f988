"""One cell on disk: every loss of a (model, task, protocol, length), or why there is none.

    cells/NAME.parquet   a finished cell, one row a window: document, start, stop, first_target,
                         losses (nats, list<float32>), bytes (UTF-8 bytes of the scored targets, null
                         where unknown), and where a protocol scores answers hits (list<bool>,
                         whether each target was the argmax); a JSON header in the metadata
    cells/NAME.json      a failed cell: its key and error

Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kerple_eval.protocols.catalogue import make_protocol
from kerple_eval.records import reductions
from kerple_eval.records.header import CellHeader, FinishedHeader
from kerple_eval.records.reductions import weighted_mean
from kerple_eval.records.schema import CELL_STEPS, SCHEMA_VERSION, up_to_date
from kerple_eval.support.files import write_atomically
from kerple_eval.support.readers import read_json
from kerple_eval.support.typed_json import from_json, to_json
from kerple_eval.types import CellKey, UserError, Window

Header = TypeVar("Header", bound=CellHeader)
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
        """Document name -> losses of its windows, in plan order."""
        found: dict[str, list[NDArray[np.float32]]] = {}
        for document, row in zip(self.document.tolist(), self.losses, strict=True):
            found.setdefault(self.header.documents[document].name, []).append(row)
        return found

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
    header: CellHeader
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
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    names = [document.name for document in cell.header.documents]
    byte_counts: Sequence[int | None] = cell.byte_counts or [None] * len(cell.windows)
    answers = {} if cell.hits is None else {"hits": pa.array(list(cell.hits), pa.list_(pa.bool_()))}
    table = pa.table(
        {
            "document": pa.array([names[i] for i in cell.document], pa.string()),
            "start": pa.array([w.start for w in cell.windows], pa.int64()),
            "stop": pa.array([w.stop for w in cell.windows], pa.int64()),
            "first_target": pa.array([w.first_target for w in cell.windows], pa.int64()),
            "losses": pa.array(list(cell.losses), pa.list_(pa.float32())),
            "bytes": pa.array(byte_counts, pa.int64()),
            **answers,
        }
    )
    header = {"schema_version": SCHEMA_VERSION, "cell": asdict(cell.key), **to_json(cell.header)}
    table = table.replace_schema_metadata({"kerple_eval": json.dumps(header)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    name = file_name(cell.key)
    write_atomically(folder / "cells" / f"{name}.parquet", buffer.getvalue())
    (folder / "cells" / f"{name}.json").unlink(missing_ok=True)


def write_failure(folder: Path, cell: FailedCell) -> None:
    content = {
        "schema_version": SCHEMA_VERSION,
        "cell": asdict(cell.key),
        "error": cell.error,
        **to_json(cell.header),
    }
    path = folder / "cells" / f"{file_name(cell.key)}.json"
    write_atomically(path, json.dumps(content, indent=2).encode() + b"\n")
    path.with_suffix(".parquet").unlink(missing_ok=True)  # of a cell that was to grow


def read_cell(folder: Path, key: CellKey) -> Cell | FailedCell | None:
    """The cell as it stands on disk; None where it has not been run."""
    path = folder / "cells" / f"{file_name(key)}.parquet"
    if path.exists():
        return _read_parquet(path, key)
    failure = path.with_suffix(".json")
    if failure.exists():
        content = read_json(failure)
        error = str(content.pop("error", ""))
        with _readable(failure):
            return FailedCell(key, _checked(CellHeader, content, failure, key), error)
    return None


def read_header(folder: Path, key: CellKey) -> FinishedHeader | None:
    """What a finished cell says of itself, without its losses; None where there is no such file."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    path = folder / "cells" / f"{file_name(key)}.parquet"
    if not path.exists():
        return None
    with _readable(path):
        return _header(pq.read_schema(path), path, key)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What a damaged file raises becomes one line that names it."""
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        kind = f"{type(error).__name__} " if isinstance(error, LookupError) else ""
        reason = kind + " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: not a readable cell ({reason}); delete it to have it computed again"
        ) from None


def _header(schema: Any, path: Path, key: CellKey) -> FinishedHeader:
    return _checked(FinishedHeader, dict(json.loads(schema.metadata[b"kerple_eval"])), path, key)


def _checked(kind: type[Header], content: dict[str, Any], path: Path, key: CellKey) -> Header:
    """The header as this release writes it, without what the file's own name and version say."""
    content = up_to_date(content, CELL_STEPS, path)
    if CellKey(**content["cell"]) != key:
        raise ValueError(f"it holds the cell {content['cell']}")
    rest = {name: value for name, value in content.items() if name not in ("cell", "schema_version")}
    try:
        return from_json(kind, rest, "header")
    except UserError as error:
        raise ValueError(str(error)) from None


def _read_parquet(path: Path, key: CellKey) -> Cell:
    import pyarrow.parquet as pq  # noqa: PLC0415

    with _readable(path):
        table = pq.read_table(path)
        header = _header(table.schema, path, key)
        columns = table.drop_columns(["losses"]).to_pydict()
        losses = table.column("losses").combine_chunks()
        edges = losses.offsets.to_numpy()
        flat = losses.values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        index = {document.name: i for i, document in enumerate(header.documents)}
        windows = [
            Window(start, stop, first, after_marker=first == start)
            for start, stop, first in zip(
                columns["start"], columns["stop"], columns["first_target"], strict=True
            )
        ]
        if not windows or [w.targets for w in windows] != np.diff(edges).tolist():
            raise ValueError("it does not hold a loss for every target")
        known = None not in columns["bytes"]
        return Cell(
            key=key,
            header=header,
            document=np.array([index[name] for name in columns["document"]], dtype=np.int64),
            windows=windows,
            losses=[flat[a:b] for a, b in pairwise(edges)],
            byte_counts=columns["bytes"] if known else None,
            hits=[np.array(row, dtype=bool) for row in columns["hits"]] if "hits" in columns else None,
        )
