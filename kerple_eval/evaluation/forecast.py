"""What a run will take, before it is spent: cells, windows, work, memory and, from a few passes, time.

Work is counted as in :mod:`kerple_eval.models.pass_time`.

Time is measured on the device: a few shapes of pass are run, once before the clock to warm up (on the CPU
short ones alone), and the others follow from a non-negative least-squares fit of a constant, linear and
attention work (SciPy's ``nnls``). Windows whose losses another cell of the run holds cost nothing, as in the
run, unless their divergences are to be computed. A reference's passes count, and both models are in memory.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from kerple_eval.evaluation.failures import failure_of
from kerple_eval.evaluation.plan import PlannedModel, RunPlan
from kerple_eval.evaluation.reference import reference_parts
from kerple_eval.evaluation.reuse import find
from kerple_eval.evaluation.worklist import Earlier, Work, worklist
from kerple_eval.models.footprint import window_bytes
from kerple_eval.models.pass_time import PassShape, pass_seconds, pass_work
from kerple_eval.models.scoring import TOKENS_PER_PASS, Budget, batches
from kerple_eval.records.cell import Cell
from kerple_eval.records.header import DocumentRecord, FinishedHeader
from kerple_eval.types import CellKey, Window

TIMED_PASSES = 5  # passes on the clock for each model
DEAREST = 4.0  # seconds: a shape that would take longer is not run but extrapolated
PRIOR = 1e-4  # weight of one rate for all work beside what was timed


@dataclass
class Forecast:
    """One model's part of a run. Work in FLOPs, memory in bytes (0: no window is computed).

    ``piece``: longer windows are fed in pieces of so many tokens, if the model's cache allows it.
    """

    model: str
    cells: int = 0
    windows: int = 0
    targets: int = 0
    served: int = 0  # windows whose losses another cell holds
    work: float = 0.0
    memory: int = 0
    piece: int | None = None
    seconds: float = 0.0
    error: str = ""  # why a pass could not be timed
    passes: Counter[PassShape] = field(default_factory=Counter)


def forecast(plan: RunPlan, finished: Collection[CellKey] = (), tokens: int | None = None) -> list[Forecast]:
    """One entry a model, in the plan's order, of the cells not in ``finished``.

    ``tokens`` of a forward pass, where it is no fixed number (:mod:`kerple_eval.evaluation.budget`).
    """
    tasks: dict[str, list[Work]] = {model.label: [] for model in plan.models}
    for task in worklist(plan):
        tasks[task.key.model].append(task)
    budget = Budget(tokens or TOKENS_PER_PASS[plan.device.type])
    models, of_reference = list(plan.models), Counter[PassShape]()
    entries = [_planned(plan, model, tasks[model.label], finished, budget, of_reference) for model in models]
    if plan.reference is not None and plan.reference.model is not None:
        other = plan.reference.model
        if not any(model is other for model in models):
            models.append(other)
            entries.append(Forecast(f"{other.label} (reference)", piece=_piece(other)))
        mine = next(entry for entry, model in zip(entries, models, strict=True) if model is other)
        mine.passes.update(of_reference)
        _state_work(plan, mine, other)
        for entry in entries:
            if entry is not mine and entry.passes:
                entry.memory += mine.memory
    for entry, model in zip(entries, models, strict=True):
        if entry.passes:
            try:
                entry.seconds = _measured(plan, model, entry.passes, budget)
            except (Exception, SystemExit) as error:  # as a cell of it would fail
                entry.error = failure_of(error).error
    return entries


def _planned(
    plan: RunPlan, model: PlannedModel, tasks: Sequence[Work], finished: Collection[CellKey], budget: Budget,
    of_reference: Counter[PassShape],
) -> Forecast:  # fmt: skip
    """One model's part; the passes of another model as reference are added to ``of_reference``."""
    reference = plan.reference
    every = reference is not None and not reference.serves(model)  # windows whose losses are served, too
    entry = Forecast(model.label, piece=_piece(model))
    earlier = Earlier(tasks)
    for task in tasks:
        if task.key in finished:
            continue
        served = _served(task, earlier.than(task))
        windows = [pair for i, pair in enumerate(task.windows) if every or i not in served]
        entry.cells += 1
        entry.windows += len(task.windows)
        entry.targets += sum(window.targets for _, window in task.windows)
        entry.served += len(served)
        entry.passes.update(_shapes(task, windows, budget))
        if reference is not None and reference.model is not None:
            of_reference.update(_shapes(task, windows, budget))
        elif reference is not None and (parts := reference_parts(reference, task)) is not None:
            own = [(d, w) for (d, _), several in zip(task.windows, parts, strict=True) for w, _ in several]
            entry.passes.update(_shapes(task, own, budget))
    _state_work(plan, entry, model)
    return entry


def _piece(model: PlannedModel) -> int | None:
    feeding = model.checkpoint.feeding
    return None if feeding is None else feeding.piece


def _shapes(task: Work, windows: Sequence[tuple[int, Window]], budget: Budget) -> Counter[PassShape]:
    """Passes over windows of a task, by shape."""
    marker = 0 if task.reading.window_bos is None else 1
    found: Counter[PassShape] = Counter()
    for members in batches(windows, budget.tokens, marker):
        window = windows[members[0]][1]
        found[PassShape(len(members), window.inputs + marker, window.targets)] += 1
    return found


def _state_work(plan: RunPlan, entry: Forecast, model: PlannedModel) -> None:
    """Work and memory of the entry's passes."""
    entry.work = sum(sum(pass_work(p, model.description)) * n for p, n in entry.passes.items())
    width, kind = model.dtype.itemsize, plan.device.type
    lengths = {shape.inputs for shape in entry.passes}
    sizes = [window_bytes(model.description, length, width, kind, entry.piece) for length in lengths]
    entry.memory = max(sizes, default=0)


def _served(task: Work, earlier: Sequence[Work]) -> set[int]:
    """Windows of a cell whose losses the cells before it will hold."""
    works = {other.key: other for other in earlier}
    return set(find(task, earlier, lambda key: _as_if(works[key])).losses)


def _as_if(task: Work) -> Cell:
    """A cell as it will be, without losses: for asking what it will serve."""
    about = task.model.description
    return Cell(
        key=task.key,
        header=FinishedHeader(
            scheme=about.scheme,
            seed=about.seed,
            train_length=about.train_length,
            dtype="",
            device="",
            first_token=task.reading.marker,
            documents=tuple(
                DocumentRecord(d.name, len(d), h)
                for d, h in zip(task.documents, task.cell.hashes, strict=True)
            ),
        ),
        document=np.array([d for d, _ in task.windows], dtype=np.int64),
        windows=[w for _, w in task.windows],
        losses=[np.empty(0, dtype=np.float32)] * len(task.windows),
        byte_counts=None,
    )


def _measured(plan: RunPlan, model: PlannedModel, passes: Counter[PassShape], budget: Budget) -> float:
    """Seconds of all passes, loading the model included."""
    began = time.monotonic()
    loaded = model.checkpoint.load(plan.device, model.dtype)
    loading = time.monotonic() - began
    work = {shape: pass_work(shape, model.description) for shape in passes}
    timed: dict[PassShape, float] = {}
    for shape in _chosen(passes, work):
        if timed and _predicted(shape, work, timed) > DEAREST:
            break
        timed[shape] = pass_seconds(loaded, shape, budget)
        if plan.device.type == "cuda" or timed[shape] < DEAREST:  # else the first is hardly the slower one
            timed[shape] = pass_seconds(loaded, shape, budget)
    return loading + sum(
        n * (timed[shape] if shape in timed else _predicted(shape, work, timed))
        for shape, n in passes.items()
    )


def _chosen(passes: Counter[PassShape], work: dict[PassShape, tuple[float, float]]) -> list[PassShape]:
    """Some shapes from the cheapest to the dearest, the costliest in total among them."""
    order = sorted(passes, key=lambda shape: sum(work[shape]))
    dominant = max(order, key=lambda shape: passes[shape] * sum(work[shape]))
    steps = np.linspace(0, len(order) - 1, min(TIMED_PASSES, len(order)))
    picked = {order[round(step)] for step in steps} | {dominant}
    return [shape for shape in order if shape in picked]


def _predicted(
    shape: PassShape, work: dict[PassShape, tuple[float, float]], timed: dict[PassShape, float]
) -> float:  # fmt: skip
    """Seconds by the fit of constant, linear and attention work, each weighed by its own time.

    What fewer than three shapes leave open is decided by no constant and one rate for all work.
    """
    from scipy.optimize import nnls  # noqa: PLC0415

    dearest = max(timed, key=lambda one: sum(work[one]))
    rate = timed[dearest] / sum(work[dearest])
    rows = np.array([[1.0, rate * work[s][0], rate * work[s][1]] for s in timed])
    seconds = np.array(list(timed.values()))
    usual = PRIOR * np.diag([1 / seconds.min(), 1.0, 1.0])
    solved, _ = nnls(
        np.concatenate([rows / seconds[:, None], usual]),
        np.concatenate([np.ones(len(seconds)), PRIOR * np.array([0.0, 1.0, 1.0])]),
    )
    return float(np.dot(solved, [1.0, rate * work[shape][0], rate * work[shape][1]]))
