"""Experiment trackers, through their own packages: TensorBoard, Weights & Biases, MLflow, trackio.

A tracker opens a run by name, with a configuration, and takes scalars by name and step. The package and the
extra that brings it have the tracker's name. Where it writes, and whether it is offline, is what its own
settings say (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR``, ...); runs that the program has open
there are left alone. MLflow allows few characters in a name: others become ``_`` there. TensorBoard writes
files into a folder, keeps float32, and has no configuration: what that says of ``NAME`` is the description
of ``NAME/METRIC``.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from contextvars import copy_context
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from kerple_eval.support.registry import Entry, Registry
from kerple_eval.types import UserError

PROJECT = "kerple-eval"
T = TypeVar("T")


def _entry(name: str, summary: str) -> Entry:
    return Entry(name, f"{__name__}:{name}", summary)


#: A target is ``start(name, config, folder) -> Tracker``.
TRACKERS = Registry(
    "experiment tracker",
    "kerple_eval.trackers",
    Entry,
    (
        _entry("tensorboard", "event files of TensorBoard"),
        _entry("wandb", "Weights & Biases"),
        _entry("mlflow", "MLflow"),
        _entry("trackio", "trackio"),
    ),
)


@dataclass(frozen=True)
class Tracker:
    """A run that a tracker has open: ``log(scalars, step)``, ``close()``, and ``where`` it is, in words."""

    log: Callable[[Mapping[str, float], int], None]
    close: Callable[[], object]
    where: str


def require(kind: str) -> None:
    """Raises `UserError` where ``kind`` is no tracker, or its package is missing."""
    ours = TRACKERS.entry(kind).target.startswith(__name__)  # another package's entry needs what it needs
    found = find_spec(kind) if ours else None
    if ours and (found is None or found.origin is None):  # without origin: a folder of that name
        raise UserError(f"{kind}: needs the package {kind}: pip install 'kerple-eval[{kind}]'")


def start(kind: str, name: str, config: Mapping[str, object], folder: Path | None) -> Tracker:
    """Open a run called ``name``; ``folder`` is for trackers that write files.

    What it returns raises `UserError` too, where the tracker fails.

    Raises:
        UserError: a tracker that is unknown, missing or refuses (no network, not logged in, ...).
    """
    require(kind)

    def guarded(function: Callable[..., T]) -> Callable[..., T]:
        def call(*args: Any) -> T:
            try:
                return function(*args)
            except Exception as error:  # the packages share no class of error
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"{kind}: refuses ({type(error).__name__}: {reason})") from error

        return call

    tracker: Tracker = guarded(TRACKERS.load(kind))(name, config, folder)
    return Tracker(guarded(tracker.log), guarded(tracker.close), tracker.where)


def tensorboard(name: str, config: Mapping[str, object], folder: Path) -> Tracker:
    from tensorboard.summary import Writer  # noqa: PLC0415

    writer = Writer(str(folder))

    def log(values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step, description=config.get(key.rpartition("/")[0]))
        writer.flush()

    return Tracker(log, writer.close, str(folder))


def wandb(name: str, config: Mapping[str, object], folder: Path | None) -> Tracker:
    import wandb as package  # noqa: PLC0415

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    settings = package.Settings(console="off")  # what the program prints is its own
    run = package.init(
        project=project, name=name, config=dict(config), reinit="create_new", settings=settings
    )
    return Tracker(lambda values, step: run.log(dict(values), step=step), run.finish, run.url or run.dir)


def mlflow(name: str, config: Mapping[str, object], folder: Path | None) -> Tracker:
    from mlflow import MlflowClient, get_tracking_uri  # noqa: PLC0415
    from mlflow.entities import Metric, Param  # noqa: PLC0415

    client = MlflowClient()
    title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(title)
    place = client.create_experiment(title) if experiment is None else experiment.experiment_id
    run = client.create_run(place, run_name=name).info.run_id

    def batches(kind: str, items: list[Any]) -> None:
        for at in range(0, len(items), 100):  # the most that MLflow takes at once
            client.log_batch(run, **{kind: items[at : at + 100]})

    def allowed(key: str) -> str:
        return re.sub(r"[^/\w.\- :]", "_", key)

    def log(values: Mapping[str, float], step: int) -> None:
        now = time.time_ns() // 1_000_000
        batches("metrics", [Metric(allowed(key), value, now, step) for key, value in values.items()])

    batches("params", [Param(allowed(key), str(value)) for key, value in config.items()])
    return Tracker(log, lambda: client.set_terminated(run), get_tracking_uri())


def trackio(name: str, config: Mapping[str, object], folder: Path | None) -> Tracker:
    import trackio as package  # noqa: PLC0415

    options = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    with redirect_stdout(sys.stderr):
        run = copy_context().run(package.init, project, name=name, config=dict(config), **options)

    steps = 0

    def log(values: Mapping[str, float], step: int) -> None:
        nonlocal steps
        run.log(dict(values), step=step)
        steps += 1

    def close() -> None:
        with redirect_stdout(sys.stderr):
            run.finish()
        if not any(os.environ.get(name) for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")):
            kept = package.SQLiteStorage.get_log_count(project, run_id=run.id)
            if kept != steps:  # what it cannot write is no error of its own
                raise OSError(f"it kept {kept} of {steps} steps, see its warning")

    return Tracker(log, close, f"trackio project {project}")
