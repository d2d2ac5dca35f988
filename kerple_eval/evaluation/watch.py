"""A model scored while it trains: the same targets every time, in a run directory that grows.

    watch = kerple_eval.Watch(text, [512, 1024], every=500, out="runs/watch")
    for step in range(1, steps + 1):
        ...                              # one step of training
        watch(model, step)

or ``transformers.Trainer(..., callbacks=[watch])``. Each step that is scored is a model of the run, labelled
``NAME@STEP``. No torch until the first call.
"""

from __future__ import annotations

import random
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerple_eval.evaluation.request import check_options
from kerple_eval.records.cell import Cell
from kerple_eval.records.growing import add_step
from kerple_eval.records.run import Run, open_run
from kerple_eval.records.scalars import facts, scalars
from kerple_eval.support import trackers
from kerple_eval.support.files import is_file
from kerple_eval.types import CellKey, UserError

if TYPE_CHECKING:
    import torch.distributed as dist

#: Seconds that a rank waits for the others to come to a step.
MEET = 45.0


class Watch:
    """Scores a model at every ``every``-th step of its training, and leaves it as it was.

    Mode, gradients, buffers and the random states of torch (CUDA's too), numpy and Python are after a call
    what they were before it.

    Args:
        texts: text as in :func:`kerple_eval.evaluate`; ``tasks=`` and ``tokens=`` may be given instead.
        lengths: window lengths L in tokens.
        protocols: how documents are cut into windows; full-context unless given.
        every: steps between two scorings; a call with step 0, before training, is one too, and finds what is
            wrong with the request before hours have gone into the training.
        out: the run directory; a run that is there and asked for the same is continued. Without it the run
            lives in a temporary folder for as long as this object.
        name: of the model; a step's label is ``NAME@STEP``.
        tokenizer: what reads text for the model.
        share: the most of the time since the first call that may go into scoring, 0 to 1. A step that would
            exceed it, judged by the last scoring, is left out and kept in ``skipped``; the first is always
            scored. No limit unless given.
        log_to: an experiment tracker: tensorboard (into ``out``), wandb, mlflow or trackio. The numbers of a
            step go there too, into a run called ``name``, see :mod:`kerple_eval.support.trackers`. Once it
            is open, a step that it does not take is a warning: the run directory has it.
        options: further options of :func:`kerple_eval.evaluate` (``documents``, ``bos``, ...).

    Attributes:
        seconds: spent in scoring so far.
        skipped: steps left out for want of time.

    Raises:
        UserError: something that was asked for is wrong; steps of another training are in ``out``.
    """

    def __init__(
        self,
        texts: Any = (),
        lengths: int | str | Sequence[int | str] | None = None,
        protocols: str | Sequence[str] | None = None,
        *,
        every: int,
        out: str | PathLike[str] | None = None,
        name: str = "model",
        tokenizer: Any = None,
        share: float | None = None,
        log_to: str | None = None,
        **options: Any,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UserError(f"every {every!r}: expected a number of steps, at least 1")
        if share is not None and not 0 < share <= 1:
            raise UserError(f"share {share!r}: expected a share of the time between 0 and 1, as 0.05")
        if not name or "@" in name:
            raise UserError(f"name {name!r}: expected a word without @, which the step follows")
        check_options(options)
        if options.get("precision") is not None:
            raise UserError("precision: steps would be scored on different documents; leave it out")
        if log_to is not None:
            trackers.require(log_to)
            if log_to == "tensorboard" and out is None:
                raise UserError("log_to='tensorboard' writes files into out: say where, as out='runs/watch'")
        asked = {"text": texts, "lengths": lengths, "protocols": protocols, "tokenizer": tokenizer, **options}
        self.asked: dict[str, Any] = {
            name: list(x) if isinstance(x, Iterator) else x for name, x in asked.items()
        }
        self.every = every
        self.name = name
        self.share = share
        self.log_to = log_to
        self.scratch = tempfile.TemporaryDirectory(prefix="kerple-eval-") if out is None else None
        self.folder = Path(fspath(out) if self.scratch is None else self.scratch.name)  # type: ignore[arg-type]
        self.seconds = 0.0
        self.skipped: list[int] = []
        self._began: float | None = None
        self._last = 0.0  # seconds of the last scoring
        self._lines: dict[CellKey, str] = {}  # of the summary
        self._tracker: trackers.Tracker | None = None

    def __call__(self, model: Any, step: int) -> Run | None:
        """Score ``model`` where ``step`` is due; None where it is not, or on another rank than 0."""
        if self._began is None:
            self._began = time.monotonic()
        if step % self.every:
            return None
        from kerple_eval.evaluation.values import run_values  # noqa: PLC0415 - imports torch

        began = time.monotonic()
        group, rank = _meet(step)
        if not _agreed(self._affordable(began), group):
            self.skipped.append(step)
            return None
        with _random_states():
            scored = run_values({f"{self.name}@{step}": model}, **self.asked)
            if rank == 0:
                add_step(self.folder, scored, step, self._lines)
                self._log(scored, step)
        run = self.run if rank == 0 else None
        self._last = time.monotonic() - began
        self.seconds += self._last
        return run

    @property
    def run(self) -> Run:
        """The run so far.

        Raises:
            UserError: no step has been scored yet.
        """
        if not is_file(self.folder / "run.json"):
            raise UserError(f"{self.folder}: no step has been scored yet")
        run = open_run(self.folder)
        run.scratch = self.scratch
        return run

    def _log(self, scored: Run, step: int) -> None:
        """The step's numbers to the tracker, which is closed when this object goes."""
        cells = [cell for cell in scored.cells() if isinstance(cell, Cell)]
        if self.log_to is None or not cells:
            return
        if self._tracker is None:
            config: dict[str, object] = {}
            for cell in cells:
                config |= facts(scored.specification.models[0], cell)
            self._tracker = trackers.start(self.log_to, self.name, config, self.folder / self.log_to)
            weakref.finalize(self, _or_warn, "at the end", self._tracker.close)
        values = {name: value for cell in cells for name, value in scalars(cell).items()}
        _or_warn(f"step {step}", self._tracker.log, values, step)

    def _affordable(self, now: float) -> bool:
        if self.share is None or not self.seconds or self._began is None:
            return True
        return self.seconds + self._last <= self.share * (now - self._began + self._last)

    def on_step_end(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
        """Of ``transformers.TrainerCallback``: after an optimiser step."""
        self(of_trainer["model"], state.global_step)

    def __getattr__(self, name: str) -> Callable[..., None]:
        """The other events of ``transformers.TrainerCallback``, which need nothing done."""
        if name.startswith("on_"):
            return lambda *args, **kwargs: None
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _or_warn(when: str, function: Callable[..., object], *args: Any) -> None:
    """What a tracker does not take is a warning, and the training goes on."""
    try:
        function(*args)
    except UserError as error:
        warnings.warn(f"watch, {when}: {error}", RuntimeWarning, stacklevel=2)


def _meet(step: int) -> tuple[dist.ProcessGroup | None, int]:
    """A group of all ranks of a distributed training, and this one's rank; (None, 0) in a single process.

    Raises:
        UserError: the others did not come.
    """
    from datetime import timedelta  # noqa: PLC0415

    import torch.distributed as dist  # noqa: PLC0415

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None, 0
    try:
        return dist.new_group(backend="gloo", timeout=timedelta(seconds=MEET)), dist.get_rank()
    except RuntimeError as error:
        raise UserError(
            f"watch at step {step}: the other ranks did not come within {MEET:.0f} s; call it on every rank, "
            "each with its copy or part of the model"
        ) from error


def _agreed(affordable: bool, group: dist.ProcessGroup | None) -> bool:
    """What rank 0 decides, on every rank: their clocks differ."""
    if group is None:
        return affordable
    import torch.distributed as dist  # noqa: PLC0415

    box = [affordable]
    dist.broadcast_object_list(box, src=0, group=group)
    dist.destroy_process_group(group)
    return box[0]


@contextmanager
def _random_states() -> Iterator[None]:
    """The random states of torch, numpy and Python are afterwards what they were."""
    import torch  # noqa: PLC0415

    states = random.getstate(), np.random.get_state()
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices=list(cards)):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
