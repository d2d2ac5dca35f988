"""The on-disk record of a run: what was asked, every loss, and the summary reduced from them.

    DIR/run.json      specification (what decides the numbers) and provenance
    DIR/cells/        one file per cell, see :mod:`kerple_eval.records.cell`
    DIR/summary.csv   one row per cell, in the order of the specification; a pure function of the
                      scored losses

Every file is written beside and renamed, so a reader never sees a part. Imports no torch.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerple_eval.records import reductions
from kerple_eval.records.answers import Answer, answers
from kerple_eval.records.cell import COLUMNS, Cell, FailedCell, file_name, read_cell
from kerple_eval.records.cell_origin import check_origin
from kerple_eval.records.schema import RUN_STEPS, SCHEMA_VERSION, up_to_date
from kerple_eval.records.specification import Provenance, RunSpecification
from kerple_eval.support.files import is_file, write_atomically
from kerple_eval.support.readers import read_json
from kerple_eval.support.registry import unknown
from kerple_eval.support.typed_json import from_json, to_json
from kerple_eval.types import CellKey, UserError

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Run:
    """A run directory. ``summary()`` and ``losses()`` are pandas frames."""

    folder: Path
    specification: RunSpecification
    provenance: Provenance
    scratch: Any = field(default=None, compare=False, repr=False)  # keeps a temporary folder while it lives

    def keys(self) -> list[CellKey]:
        """Every cell the specification asks for, in the summary's order."""
        return [
            CellKey(model.label, task.name, plan.protocol, length, plan.longest)
            for model in self.specification.models
            for task in self.specification.tasks
            for plan in self.specification.protocols
            for length in plan.lengths
        ]

    def cell(self, key: CellKey) -> Cell | FailedCell | None:
        """The cell as it stands on disk; None where it has not been run.

        Raises:
            UserError: it cannot be read, or was computed from something else than ``run.json`` states.
        """
        cell = read_cell(self.folder, key)
        if cell is not None:
            check_origin(cell.header, key, self.specification, self.cell_path(cell))
        return cell

    def cell_path(self, cell: Cell | FailedCell) -> Path:
        """The file of a cell."""
        ending = ".parquet" if isinstance(cell, Cell) else ".json"
        return self.folder / "cells" / f"{file_name(cell.key)}{ending}"

    def cells(self) -> Iterable[Cell | FailedCell]:
        """Cells that have been run, one at a time, in the summary's order."""
        for key in self.keys():
            cell = self.cell(key)
            if cell is not None:
                yield cell

    def write_specification(self) -> None:
        """Write ``run.json``.

        Raises:
            UserError: it could not be read again, as a number of it has more than 64 bits.
        """
        content = {
            "schema_version": SCHEMA_VERSION,
            "specification": to_json(self.specification),
            "provenance": to_json(self.provenance),
        }
        from_json(RunSpecification, content["specification"], f"{self.folder / 'run.json'}: specification")
        write_atomically(self.folder / "run.json", json.dumps(content, indent=2).encode() + b"\n")

    def update_provenance(self, **changes: Any) -> None:
        """Replace fields of the provenance, on disk too."""
        self.provenance = replace(self.provenance, **changes)
        self.write_specification()

    def summary(self) -> pd.DataFrame:
        """One row a cell that has been run, columns as in ``summary.csv``.

        Of a training that was watched also ``step``.
        """
        import pandas as pd  # noqa: PLC0415

        rows = [cell.summary() | {"step": cell.header.step} for cell in self.cells()]
        watched = ["step"] if any(row["step"] is not None for row in rows) else []
        frame = pd.DataFrame(rows, columns=[*COLUMNS, *watched])
        whole = ("seed", "train_length", "length", "documents", "windows", "targets", *watched)
        real = ("nll", "ppl", "bits_per_byte")
        return frame.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(real, "float64"))

    def answers(self) -> pd.DataFrame:
        """One row a document of the finished cells that score answers (passkey, needle, ...).

        Columns: model, task, length, depth (0..1), document, targets, hits (targets that were the
        argmax), exact (whether all were), loss (mean nats per target).
        """
        import pandas as pd  # noqa: PLC0415

        rows = []
        for cell in self.cells():
            if isinstance(cell, Cell) and cell.hits is not None:
                key = {name: getattr(cell.key, name) for name in ("model", "task", "length")}
                rows += [{**key, **asdict(answer)} for answer in answers(cell)]
        columns = ["model", "task", "length", *(f.name for f in fields(Answer))]
        return pd.DataFrame(rows, columns=columns)

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
        (tokens the model saw), loss (nats); of a training that was watched also step.
        """
        return self._targets({"model": model, "task": task, "protocol": protocol, "length": length})

    def divergences(
        self,
        *,
        model: str | None = None,
        task: str | None = None,
        protocol: str | None = None,
        length: int | None = None,
    ) -> pd.DataFrame:
        """:meth:`losses` of the cells with divergences from a reference, and of each target these.

        Further columns: reference (its label), reference_length (tokens; where it is the model itself),
        divergence (nats), agreement (whether both have the same largest logit), entropy (nats, of the model's
        prediction), rank (of the target; 1 is the largest logit).
        """
        wanted = {"model": model, "task": task, "protocol": protocol, "length": length}
        return self._targets(wanted, divergences=True)

    def _targets(self, wanted: Mapping[str, Any], *, divergences: bool = False) -> pd.DataFrame:
        import pandas as pd  # noqa: PLC0415

        columns = ["model", "task", "protocol", "length", "document", "target", "context", "loss"]
        frames = []
        keys = self.keys()
        for name, value in wanted.items():
            known = {str(getattr(key, name)) for key in keys}
            if value is not None and str(value) not in known:
                raise unknown(name, str(value), sorted(known))
        for key in keys:
            if any(v is not None and str(getattr(key, k)) != str(v) for k, v in wanted.items()):
                continue
            cell = self.cell(key)
            if not isinstance(cell, Cell) or (divergences and cell.divergence is None):
                continue
            names = [document.name for document in cell.header.documents]
            counts = [w.targets for w in cell.windows]
            frame = pd.DataFrame(
                {
                    "document": np.repeat([names[i] for i in cell.document], counts),
                    "target": np.concatenate([np.arange(w.first_target, w.stop + 1) for w in cell.windows]),
                    "context": reductions.contexts(cell.windows),
                    "loss": np.concatenate(cell.losses),
                }
            )
            for column in columns[:4]:
                frame[column] = getattr(key, column)
            if cell.header.step is not None:
                frame["step"] = cell.header.step
            if divergences and cell.divergence is not None and cell.header.divergence is not None:
                frame["reference"] = cell.header.divergence.reference.label
                frame["reference_length"] = pd.Series(cell.header.divergence.length, frame.index, "Int64")
                for column in cell.divergence.columns:
                    frame[column] = cell.divergence.flat(column)
            frames.append(frame[[*columns, *frame.columns[len(columns) :]]])
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def write_summary(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """``summary.csv`` of these rows."""
    write_summary_lines(folder, map(summary_line, rows))


def write_summary_lines(folder: Path, lines: Iterable[str]) -> None:
    """``summary.csv`` of rows that :func:`summary_line` has written."""
    write_atomically(folder / "summary.csv", "".join([_csv(COLUMNS), *lines]).encode())


def summary_line(row: dict[str, Any]) -> str:
    """A row of ``summary.csv`` with full precision; None is an empty field."""
    return _csv(["" if row[c] is None else _text(row[c]) for c in COLUMNS])


def _csv(fields: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(fields)
    return buffer.getvalue()


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def open_run(folder: str | Path) -> Run:
    """Open a run directory written by ``kerple-eval run``."""
    path = Path(folder)
    if not is_file(path / "run.json"):
        raise UserError(f"{path}: not a run directory (no run.json)")
    file = path / "run.json"
    data = up_to_date(read_json(file), RUN_STEPS, file)
    return Run(
        path,
        from_json(RunSpecification, data.get("specification"), f"{file}: specification"),
        from_json(Provenance, data.get("provenance"), f"{file}: provenance"),
    )


def own_label(model: str, folder: str | Path, owners: dict[str, str]) -> str:
    """The model's label; where another run holds it the run's name joins it, or else its whole path.

    ``owners`` maps a label given so far to its run.
    """
    if owners.setdefault(model, str(folder)) == str(folder):
        return model
    named = f"{model} ({Path(folder).resolve().name})"
    return named if owners.setdefault(named, str(folder)) == str(folder) else f"{model} ({folder})"
