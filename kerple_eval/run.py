"""Runs a plan: skips finished cells, isolates failures, rewrites the summary after every cell."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kerple_eval import __version__
from kerple_eval.cells import Cell, FailedCell, read_cell, write_cell, write_failure
from kerple_eval.checkpoints.base import LanguageModel
from kerple_eval.data.documents import TokenDocument
from kerple_eval.files import locked
from kerple_eval.plan import LENGTHS, CellPlan, PlannedModel, ProtocolPlan, RunPlan, make_plan
from kerple_eval.protocols.base import Protocol
from kerple_eval.records import Run, differences, open_run, write_summary
from kerple_eval.reuse import Source, find
from kerple_eval.scoring import TOKENS_PER_PASS, score
from kerple_eval.types import BosRule, CellKey, UserError, Window

Losses = list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run tells its watcher: the cell at hand and the share of the run's work behind it."""

    key: CellKey
    cells_done: int
    cells: int
    work_done: float
    work: float


def evaluate(
    models: str | Sequence[str],
    *,
    out: str | Path,
    tasks: str | Sequence[str] = (),
    protocols: str | Sequence[str] = ("full-context",),
    lengths: Sequence[int] = LENGTHS,
    text: str | Sequence[str] = (),
    tokens: str | Sequence[str] = (),
    documents: int | None = None,
    keep_short: bool = False,
    max_tokens: int | None = None,
    seed: int | None = None,
    bos: BosRule | None = None,
    device: str = "auto",
    dtype: str = "float32",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Run:
    """Score every (model, task, protocol, length) into the run directory ``out``.

    The same as ``kerple-eval run``: finished cells are kept, failed ones tried again, and a directory
    that holds another specification is refused.

    Args:
        models: ``[LABEL=]FORMAT:PLACE[,key=value]`` or a directory, one or several.
        lengths: window lengths L in tokens.
        documents: how many documents; all eligible ones unless given.
        max_tokens: cut each document after so many tokens.
        bos: the first-token rule of every text, in place of a task's own: never, document, window or
            tokenizer (what each model's tokeniser does by itself; the default of ``text``).

    Returns:
        The run; ``run.summary()`` and ``run.losses()`` are pandas frames.

    Raises:
        UserError: something asked for is wrong; nothing was computed.
    """
    plan = make_plan(
        _several(models),
        tasks=_several(tasks),
        protocols=_several(protocols),
        lengths=lengths,
        text=_several(text),
        tokens=_several(tokens),
        documents=documents,
        keep_short=keep_short,
        max_tokens=max_tokens,
        seed=seed,
        bos=bos,
        device=device,
        dtype=dtype,
    )
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --out must be a folder")
    with locked(folder):
        run = _open_or_start(folder, plan)
        worker = _Worker(run, plan, on_progress)  # reads every finished cell, so refuses a damaged one
        run.write_specification()
        worker.work()
    return run


def _several(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _open_or_start(folder: Path, plan: RunPlan) -> Run:
    session = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["kerple-eval", *sys.argv[1:]],
        "kerple_eval": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        **_transformers(),
        "device": torch.cuda.get_device_name() if plan.device.type == "cuda" else platform.machine(),
    }
    if (folder / "run.json").exists():
        run = open_run(folder)
        different = differences(run.specification, plan.specification)
        if different:
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise UserError(
                f"{folder}: holds a run with another specification: {different[0]}{more}; "
                "choose another --out"
            )
        run.provenance["sessions"].append(session)
    else:
        run = Run(folder, plan.specification, {**plan.provenance, "sessions": [session]})
    return run


def _transformers() -> dict[str, str]:
    """Its version where a model of this run needed it: numbers may differ between releases."""
    module = sys.modules.get("transformers")
    return {} if module is None else {"transformers": str(module.__version__)}


class _Worker:
    def __init__(self, run: Run, plan: RunPlan, on_progress: Callable[[Progress], None]) -> None:
        self.run = run
        self.plan = plan
        self.on_progress = on_progress
        self.rows: dict[CellKey, dict[str, Any]] = {}
        for cell in run.cells():
            self.rows[cell.key] = cell.summary()
        self.tasks = list(_tasks(plan))
        self.todo = [task for task in self.tasks if self.rows.get(task.key, {}).get("status") != "ok"]
        self.keys = run.keys()
        self.work_total = sum(task.work for task in self.todo)
        self.work_done = 0.0

    def work(self) -> None:
        self._write_summary()
        model: LanguageModel | None = None
        loaded: PlannedModel | None = None
        for task in self.todo:
            self._tell(task)
            began = time.monotonic()
            before = self.work_done
            try:
                if loaded is not task.model:
                    model = None  # the last model's memory goes before the next is loaded
                    model = task.model.checkpoint.load(self.plan.device, self.plan.dtype)
                    loaded = task.model
                assert model is not None
                losses, source = self._losses(task, model)
            except (UserError, ArithmeticError, MemoryError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:300]
                failure = FailedCell(task.key, self._header(task), f"{type(error).__name__}: {reason}")
                write_failure(self.run.folder, failure)
                self.rows[task.key] = failure.summary()
            else:
                cell = self._cell(task, losses)
                cell.header["losses_from"] = source
                # A checkpoint may fix its own precision (neox: numerics=release).
                cell.header["dtype"] = str(model.dtype).removeprefix("torch.")
                cell.header["seconds"] = round(time.monotonic() - began, 3)
                write_cell(self.run.folder, cell)
                self.rows[task.key] = cell.summary()
            self.work_done = before + task.work
            self._write_summary()
            self._tell(task)

    def _losses(self, task: _Task, model: LanguageModel) -> tuple[Losses, str]:
        """Losses in plan order and where they come from: cells before this one, and forward passes."""
        found = find(
            task.key, task.cell, self._before(task), self._finished,
            prefix_invariant=task.model.description.prefix_invariant,
            is_prefix=task.plan.protocol.is_prefix,
        )  # fmt: skip
        ids = [document.ids for document in task.documents]
        rest = [index for index in range(len(task.windows)) if index not in found.losses]
        losses = dict(found.losses)
        windows = [task.windows[index] for index in rest]
        for members, scored in score(model, ids, windows, bos=task.reading.window_bos):
            for number, row in zip(members, scored, strict=True):
                losses[rest[number]] = row
            self.work_done += sum(_work(windows[number][1]) for number in members)
            self._tell(task)
        source = found.describe(task.key, len(task.windows))
        return [losses[index] for index in range(len(task.windows))], source

    def _before(self, task: _Task) -> list[Source]:
        """Cells of the same model and text that come before this one in the run's order."""
        alike = [t for t in self.tasks if (t.key.model, t.key.task) == (task.key.model, task.key.task)]
        keys = [t.key for t in alike]
        return [Source(t.key, t.cell) for t in alike[: keys.index(task.key)]]

    def _finished(self, key: CellKey) -> Cell | None:
        cell = read_cell(self.run.folder, key)
        return cell if isinstance(cell, Cell) else None

    def _header(self, task: _Task) -> dict[str, Any]:
        description = task.model.description
        rule = task.plan.protocol.reduction
        return {
            "scheme": description.scheme,
            "seed": description.seed,
            "train_length": description.train_length,
            "weights_sha256": description.weights_sha256,
            "dtype": self.run.specification["dtype"],
            "device": self.plan.device.type,
            "tokens_per_pass": TOKENS_PER_PASS[self.plan.device.type],
            "threads": torch.get_num_threads(),
            "first_token": task.reading.marker,
            **({} if rule == Protocol.reduction else {"reduction": rule}),
        }

    def _cell(self, task: _Task, losses: Losses) -> Cell:
        used = sorted({index for index, _ in task.windows})
        place = {index: position for position, index in enumerate(used)}
        header = self._header(task) | {
            "documents": [
                {"name": d.name, "tokens": len(d), "sha256": d.sha256}
                for d in (task.documents[index] for index in used)
            ]
        }
        return Cell(
            key=task.key,
            header=header,
            document=np.array([place[index] for index, _ in task.windows], dtype=np.int64),
            windows=[window for _, window in task.windows],
            losses=losses,
            byte_counts=_byte_counts(task.documents, task.windows),
        )

    def _tell(self, task: _Task) -> None:
        done = sum(row["status"] == "ok" for row in self.rows.values())
        self.on_progress(Progress(task.key, done, len(self.keys), self.work_done, self.work_total))

    def _write_summary(self) -> None:
        rows = (self.rows[key] for key in self.keys if key in self.rows)
        write_summary(self.run.folder, rows)


@dataclass
class _Task:
    """One cell to compute."""

    key: CellKey
    model: PlannedModel
    plan: ProtocolPlan
    cell: CellPlan

    def __post_init__(self) -> None:
        self.documents, self.windows, self.reading = (
            self.cell.documents,
            self.cell.windows,
            self.cell.reading,
        )
        self.work = sum(_work(window) for _, window in self.windows)


def _tasks(plan: RunPlan) -> Iterator[_Task]:
    """Cells by model, task, protocol; a prefix protocol's longest length first, as others need it."""
    for model in plan.models:
        for text in model.texts:
            for protocol in plan.protocols:
                for length in sorted(protocol.lengths, reverse=protocol.protocol.is_prefix):
                    cell = model.cells[text, protocol.name, length]
                    key = protocol.key(model.label, text, length)
                    yield _Task(key, model, protocol, cell)


def _work(window: Window) -> float:
    """Rough cost of a window, for the progress bar: linear layers and causal attention."""
    return window.inputs * (1.0 + window.inputs / 4096)


def _byte_counts(
    documents: Sequence[TokenDocument], windows: Sequence[tuple[int, Window]]
) -> list[int] | None:
    counts = [documents[index].spelled(window) for index, window in windows]
    return None if None in counts else [count for count in counts if count is not None]
