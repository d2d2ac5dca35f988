"""A run directory to which a model is added at a time: the steps of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kerple_eval.records.cell import Cell, write_cell, write_failure
from kerple_eval.records.merging import joined_specification
from kerple_eval.records.run import Run, open_run, summary_line, write_summary_lines
from kerple_eval.support.files import is_file, locked
from kerple_eval.types import CellKey, UserError


def add_step(folder: Path, scored: Run, step: int, lines: dict[CellKey, str]) -> None:
    """Write the cells of ``scored``, one model at ``step`` of its training, into the run in ``folder``.

    ``lines`` of the summary that earlier calls left there are used again, so that a step reads its own cells
    alone; those it lacks are made of the cells in ``folder``. Cells go first and ``run.json`` last but for
    the summary, so that a kill leaves whole steps.

    Raises:
        UserError: the run there is of other texts, protocols or settings, or has other weights at that step.
    """
    with locked(folder):
        run = open_run(folder) if is_file(folder / "run.json") else None
        grown = Run(folder, scored.specification, scored.provenance)
        if run is not None:
            for model in scored.specification.models:
                for known in run.specification.models:
                    if known.label == model.label and known.weights_sha256 != model.weights_sha256:
                        raise UserError(
                            f"{folder}: holds {model.label} with other weights, of another training; choose "
                            "another out"
                        )
            specification = joined_specification(run, scored)
            sessions = (*run.provenance.sessions, *scored.provenance.sessions)
            models = {**run.provenance.models, **scored.provenance.models}
            provenance = replace(run.provenance, models=models, sessions=sessions)
            grown = Run(folder, specification, provenance)
        for cell in scored.cells():
            if isinstance(cell, Cell):
                write_cell(folder, replace(cell, header=replace(cell.header, step=step)))
            else:
                write_failure(folder, replace(cell, header=replace(cell.header, step=step)))
            lines[cell.key] = summary_line(cell.summary())
        grown.write_specification()
        keys = grown.keys()
        for key in keys:
            if key not in lines and (held := grown.cell(key)) is not None:
                lines[key] = summary_line(held.summary())
        write_summary_lines(folder, [lines[key] for key in keys if key in lines])
