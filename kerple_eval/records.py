"""The on-disk record of a run: what was asked, every loss, and the summary reduced from them.

    DIR/run.json             specification (what decides the numbers) and provenance
    DIR/cells/NAME.parquet   one per finished cell, one row a window: document, start, stop,
                             first_target, losses (nats, list<float32>), bytes (UTF-8 bytes of the
                             scored targets, null where unknown); a JSON header in the metadata
    DIR/cells/NAME.json      one per failed cell: its key and error
    DIR/summary.csv          one row a cell, in the order of the specification; a pure function of
                             the scored losses

Every file is written beside and renamed, so a reader never sees a part. Imports no torch.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerple_eval import stats
from kerple_eval.files import write_atomically
from kerple_eval.types import CellKey, UserError, Window

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
COLUMNS = (
    "model", "scheme", "seed", "train_length", "task", "protocol", "length", "documents",
    "windows", "targets", "targets_hash", "nll", "ppl", "bits_per_byte", "dtype", "device",
    "status", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A finished cell: rows are windows in plan order; ``document`` indexes ``header['documents']``."""

    key: CellKey
    header: dict[str, Any]
    document: NDArray[np.int64]
    windows: Sequence[Window]
    losses: Sequence[NDArray[np.float32]]
    byte_counts: Sequence[int] | None

    def summary(self) -> dict[str, Any]:
        """The cell's row of ``summary.csv``."""
        nll = stats.mean_loss(self.losses)
        total = None if self.byte_counts is None else sum(self.byte_counts)
        return {
            **_identity(self.key, self.header),
            "documents": len(set(self.document.tolist())),
            "windows": len(self.windows),
            "targets": sum(window.targets for window in self.windows),
            "targets_hash": self.targets_hash,
            "nll": nll,
            "ppl": stats.perplexity(nll),
            "bits_per_byte": stats.bits_per_byte(self.losses, total),
            "dtype": self.header["dtype"],
            "device": self.header["device"],
            "status": "ok",
            "error": None,
        }

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
        documents = self.header["documents"]
        for document in sorted(spans, key=lambda d: str(documents[d]["name"])):
            digest.update(json.dumps([documents[document]["sha256"], _merge(spans[document])]).encode())
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
    header: dict[str, Any]
    error: str

    def summary(self) -> dict[str, Any]:
        return {
            **dict.fromkeys(COLUMNS),
            **_identity(self.key, self.header),
            "dtype": self.header["dtype"],
            "device": self.header["device"],
            "status": "failed",
            "error": self.error,
        }


def _identity(key: CellKey, header: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": key.model,
        "scheme": header["scheme"],
        "seed": header["seed"],
        "train_length": header["train_length"],
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

    names = [entry["name"] for entry in cell.header["documents"]]
    spelled: Sequence[int | None] = cell.byte_counts or [None] * len(cell.windows)
    table = pa.table(
        {
            "document": pa.array([names[i] for i in cell.document], pa.string()),
            "start": pa.array([w.start for w in cell.windows], pa.int64()),
            "stop": pa.array([w.stop for w in cell.windows], pa.int64()),
            "first_target": pa.array([w.first_target for w in cell.windows], pa.int64()),
            "losses": pa.array(list(cell.losses), pa.list_(pa.float32())),
            "bytes": pa.array(spelled, pa.int64()),
        }
    )
    header = {"schema_version": SCHEMA_VERSION, "cell": asdict(cell.key), **cell.header}
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
        **cell.header,
    }
    path = folder / "cells" / f"{file_name(cell.key)}.json"
    write_atomically(path, json.dumps(content, indent=2).encode() + b"\n")


def read_cell(folder: Path, key: CellKey) -> Cell | FailedCell | None:
    """The cell as it stands on disk; None where it has not been run."""
    path = folder / "cells" / f"{file_name(key)}.parquet"
    if path.exists():
        return _read_parquet(path)
    failure = path.with_suffix(".json")
    if failure.exists():
        header = _read_json(failure)
        try:
            return FailedCell(CellKey(**header.pop("cell")), header, header.pop("error"))
        except (KeyError, TypeError):
            raise UserError(f"{failure}: not a readable cell; delete it to have it computed again") from None
    return None


def _read_parquet(path: Path) -> Cell:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        table = pq.read_table(path)
        header = json.loads(table.schema.metadata[b"kerple_eval"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: not a readable cell ({reason}); delete it to have it computed again"
        ) from None
    if header["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {header['schema_version']}; this release reads {SCHEMA_VERSION}"
        )
    columns = table.drop_columns(["losses"]).to_pydict()
    losses = table.column("losses").combine_chunks()
    edges = losses.offsets.to_numpy()
    flat = losses.values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    index = {entry["name"]: i for i, entry in enumerate(header["documents"])}
    known = None not in columns["bytes"]
    return Cell(
        key=CellKey(**header["cell"]),
        header={k: v for k, v in header.items() if k not in ("cell", "schema_version")},
        document=np.array([index[name] for name in columns["document"]], dtype=np.int64),
        windows=[
            Window(*row)
            for row in zip(columns["start"], columns["stop"], columns["first_target"], strict=True)
        ],
        losses=[flat[a:b] for a, b in pairwise(edges)],
        byte_counts=columns["bytes"] if known else None,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object, got {type(data).__name__}")
    return data


@dataclass
class Run:
    """A run directory. ``summary()`` and ``losses()`` are pandas frames."""

    folder: Path
    specification: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)

    def keys(self) -> list[CellKey]:
        """Every cell the specification asks for, in the summary's order."""
        return [
            CellKey(model["label"], task["name"], plan["protocol"], length, plan["longest"])
            for model in self.specification["models"]
            for task in self.specification["tasks"]
            for plan in self.specification["protocols"]
            for length in plan["lengths"]
        ]

    def cells(self) -> Iterable[Cell | FailedCell]:
        """Cells that have been run, one at a time, in the summary's order."""
        for key in self.keys():
            cell = read_cell(self.folder, key)
            if cell is not None:
                yield cell

    def write_specification(self) -> None:
        content = {
            "schema_version": SCHEMA_VERSION,
            "specification": self.specification,
            "provenance": self.provenance,
        }
        write_atomically(self.folder / "run.json", json.dumps(content, indent=2).encode() + b"\n")

    def summary(self) -> pd.DataFrame:
        """One row a cell that has been run, columns as in ``summary.csv``."""
        import pandas as pd  # noqa: PLC0415

        frame = pd.DataFrame([cell.summary() for cell in self.cells()], columns=list(COLUMNS))
        whole = ("seed", "train_length", "length", "documents", "windows", "targets")
        real = ("nll", "ppl", "bits_per_byte")
        return frame.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(real, "float64"))

    def losses(
        self,
        *,
        model: str | None = None,
        task: str | None = None,
        protocol: str | None = None,
        length: int | None = None,
    ) -> pd.DataFrame:
        """One row a scored target of the finished cells (or of those asked for).

        Columns: model, task, protocol, length, document, target (index in the document), context
        (tokens the model saw), loss (nats).
        """
        import pandas as pd  # noqa: PLC0415

        wanted = {"model": model, "task": task, "protocol": protocol, "length": length}
        columns = ["model", "task", "protocol", "length", "document", "target", "context", "loss"]
        frames = []
        for key in self.keys():
            if any(v is not None and getattr(key, k) != v for k, v in wanted.items()):
                continue
            cell = read_cell(self.folder, key)
            if not isinstance(cell, Cell):
                continue
            names = [entry["name"] for entry in cell.header["documents"]]
            counts = [w.targets for w in cell.windows]
            frame = pd.DataFrame(
                {
                    "document": np.repeat([names[i] for i in cell.document], counts),
                    "target": np.concatenate([np.arange(w.first_target, w.stop + 1) for w in cell.windows]),
                    "context": stats.contexts(cell.windows),
                    "loss": np.concatenate(cell.losses),
                }
            )
            for column in columns[:4]:
                frame[column] = getattr(key, column)
            frames.append(frame[columns])
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def write_summary(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """``summary.csv`` with full precision; None is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(["" if row[c] is None else _text(row[c]) for c in COLUMNS])
    write_atomically(folder / "summary.csv", buffer.getvalue().encode())


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def open_run(folder: str | Path) -> Run:
    """Open a run directory written by ``kerple-eval run``."""
    path = Path(folder)
    if not (path / "run.json").is_file():
        raise UserError(f"{path}: not a run directory (no run.json)")
    data = _read_json(path / "run.json")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path / 'run.json'}: schema version {data.get('schema_version')!r}; "
            f"this release reads {SCHEMA_VERSION}"
        )
    try:
        run = Run(path, data["specification"], data["provenance"])
        run.keys()
        if not isinstance(run.provenance["sessions"], list):
            raise TypeError("sessions is not a list")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / 'run.json'}: damaged: {type(error).__name__} {error}") from None
    return run


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """``key was old there and is new now`` for every leaf of two recorded specifications that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f"{where}.{key}" if where else str(key), old.get(key), new.get(key)) for key in old | new]
    elif isinstance(old, list) and isinstance(new, list) and any(isinstance(x, dict) for x in old + new):
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip_longest(old, new))]
    else:
        return [] if old == new else [f"{where} was {_brief(old)} there and is {_brief(new)} now"]
    return [line for place, a, b in pairs for line in differences(a, b, place)]


def _brief(value: Any) -> str:
    """A model, task or protocol by its name alone; anything else whole."""
    if value is None:
        return "absent"
    if isinstance(value, dict):
        return next((repr(value[k]) for k in ("label", "protocol", "name") if k in value), repr(value))
    return repr(value)
