"""``kerple-eval run --dry-run``: estimates the work, memory and time of a run; nothing is scored.

The estimate is kept in ``DIR/estimate.json``, so that the run can compare it with the time it took.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from kerple_eval.evaluation.budget import measured
from kerple_eval.evaluation.continuing import refuse_another
from kerple_eval.evaluation.forecast import Forecast, forecast
from kerple_eval.evaluation.inspection import bfloat16_on_cpu
from kerple_eval.evaluation.plan import RunPlan
from kerple_eval.evaluation.planning import make_plan
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.evaluation.verify import checked_cells
from kerple_eval.evaluation.worklist import worklist
from kerple_eval.models.devices import bfloat16_instructions
from kerple_eval.records.cell import Cell
from kerple_eval.records.run import Run, open_run
from kerple_eval.records.specification import RunSpecification
from kerple_eval.reports.typeset import Table, TableCell, TableRow, typeset
from kerple_eval.support.files import is_file, write_atomically
from kerple_eval.support.readers import read_json
from kerple_eval.support.typed_json import from_json, to_json
from kerple_eval.types import CellKey, UserError

FILE = "estimate.json"


def run(request: RunRequest) -> int:
    """Print and keep the estimate; the exit status, 0."""
    plan = make_plan(request)
    for model in plan.loaded:
        model.checkpoint.check_ranks(1)  # its passes are timed in this process
    folder = request.out
    finished: set[CellKey] = set()
    kept: int | None = None  # tokens of a pass, as a run that has begun keeps them
    if is_file(folder / "run.json"):
        begun = open_run(folder)
        refuse_another(begun, plan.specification)
        kept = begun.provenance.tokens_per_pass
        held = checked_cells(begun, plan, worklist(plan))
        asked = plan.reference is not None
        finished = {c.key for c in held if isinstance(c, Cell) and not (asked and c.divergence is None)}
    entries = forecast(plan, finished, kept or _tokens(plan))
    print(typeset(_table(entries), "text"))
    instructions, narrow = bfloat16_instructions(), any(m.dtype == torch.bfloat16 for m in plan.models)
    if plan.device.type == "cpu" and bool(instructions) != narrow:
        print(f"--dtype bfloat16 on this CPU: {bfloat16_on_cpu(instructions)}")
    if plan.precision is not None:
        print("with --precision this is the most it can take; it stops when it is sure")
    keys = [key for key in Run(folder, plan.specification, plan.provenance).keys() if key not in finished]  # noqa: SIM118
    record = {
        "device": plan.device.type,
        "models": [{k: v for k, v in asdict(entry).items() if k != "passes"} for entry in entries],
        "specification": specification_sha256(plan.specification),
        "cells": [asdict(key) for key in keys],
    }
    if any(entry.error for entry in entries):
        print("nothing was scored; the same command without --dry-run begins")
        return 0
    write_atomically(folder / FILE, json.dumps(record, indent=2).encode() + b"\n")
    print(f"nothing was scored; the same command without --dry-run begins, and {folder / FILE} keeps this")
    return 0


def _tokens(plan: RunPlan) -> int | None:
    """Tokens of a forward pass, measured as the run would on CUDA; None on the CPU, where they are fixed."""
    if plan.device.type != "cuda":
        return None
    return measured(plan.models[0].checkpoint.load(plan.device, plan.models[0].dtype), plan.longest)


HEAD = ("model", "cells", "windows", "targets", "reused", "TFLOP", "GB", "time")


def _table(entries: Sequence[Forecast]) -> Table:
    rows = [_row(entry.model, [entry]) for entry in entries]
    if len(entries) > 1:
        rows.append(_row("all", entries))
    notes = [
        f"{entry.model}: windows longer than {entry.piece:,} tokens are fed in pieces of as many, where its "
        "cache gives the logits of one pass"
        for entry in entries
        if entry.piece is not None
    ]
    notes += [f"{entry.model}: its time is unknown: {entry.error}" for entry in entries if entry.error]
    if any(entry.served for entry in entries):
        notes.append("reused: windows whose losses come from other cells of the run")
    words = frozenset({0, len(HEAD) - 1})
    return Table("What the run will take", HEAD, tuple(rows), tuple(notes), words)


def _row(label: str, entries: Sequence[Forecast]) -> TableRow:
    counts = [sum(getattr(e, k) for e in entries) for k in ("cells", "windows", "targets", "served")]
    work = sum(entry.work for entry in entries) / 1e12
    memory = max(entry.memory for entry in entries) / 1e9
    seconds = sum(entry.seconds for entry in entries)
    time = "unknown" if any(entry.error for entry in entries) else _time(seconds)
    numbers = (*(f"{count:,}" for count in counts), f"{work:,.2f}", f"{memory:.2f}", time)
    return TableRow(tuple(map(TableCell, (label, *numbers))))


def specification_sha256(specification: RunSpecification) -> str:
    return hashlib.sha256(json.dumps(to_json(specification), sort_keys=True).encode()).hexdigest()


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def verdict(run: Run, seconds: Mapping[CellKey, float | None]) -> str | None:
    """``estimated 12.0 s, took 13.1 s`` for the cells of the run's estimate; ``seconds`` of finished ones.

    None where there is no estimate of this run, or its cells are not all finished.
    """
    folder = Path(run.folder)
    if not is_file(folder / FILE):
        return None
    try:
        record = read_json(folder / FILE)
        if record["specification"] != specification_sha256(run.specification):
            return None
        keys = [from_json(CellKey, key, "cells") for key in record["cells"]]
        estimate = sum(from_json(float, entry["seconds"], "seconds") for entry in record["models"])
    except (UserError, KeyError, TypeError):  # what cannot be read is no estimate
        return None
    took = [seconds.get(key) for key in keys]
    if None in took:
        return None
    return f"estimated {_time(estimate)}, took {_time(sum(filter(None, took)))}"
