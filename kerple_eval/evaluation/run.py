"""From a request to a run: plans it, opens its directory and has its cells computed."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from kerple_eval.evaluation.continuing import refuse_another
from kerple_eval.evaluation.plan import RunPlan
from kerple_eval.evaluation.planning import make_plan
from kerple_eval.evaluation.ranks import RankGroup, SingleProcess, join_ranks
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.evaluation.worker import RunProgress, Worker
from kerple_eval.models.base import Checkpoint
from kerple_eval.models.open import in_memory_spec, open_model, parse_model
from kerple_eval.records.run import Run, open_run
from kerple_eval.records.specification import Session
from kerple_eval.support.files import is_file, locked, write_atomically
from kerple_eval.support.version import VERSION
from kerple_eval.types import UserError


def run_request(
    request: RunRequest, on_progress: Callable[[RunProgress], None] = lambda progress: None
) -> Run:
    """Score what a request asks for, into its folder; see :func:`kerple_eval.evaluate`."""
    named = [*request.models, request.divergence_from or ""]
    ranks = join_ranks(parts=any(",parallel=tensor" in model for model in named))
    if isinstance(ranks, RankGroup) and ranks.rank:
        shared: Run
        shared, files = ranks.run_worker_loop(
            request.device, request.dtype, request.attention, _opener(request)
        )
        for name, content in files.items():
            write_atomically(request.out / name, content)
        return open_run(request.out) if files else shared
    try:
        run = _run(request, make_plan(request), on_progress, ranks)
    except BaseException as error:
        ranks.release(error=error)
        raise
    # A temporary folder is rank 0's alone: the other ranks get what it holds.
    ranks.release((run, _contents(run.folder) if request.temporary and ranks.size > 1 else {}))
    return run


def _contents(folder: Path) -> dict[str, bytes]:
    """The files of a run directory by their names in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def _opener(request: RunRequest) -> Callable[[str], Checkpoint]:
    """Opens a model by the words that rank 0 names it with; each rank has its own models in memory."""
    held = {in_memory_spec(label, model.name).text: model for label, model in request.in_memory.items()}
    return lambda argument: held[argument] if argument in held else open_model(parse_model(argument))


def _run(
    request: RunRequest, plan: RunPlan, on_progress: Callable[[RunProgress], None], ranks: SingleProcess
) -> Run:
    folder = request.out
    if is_file(folder):
        raise UserError(f"{folder}: is a file; --out must be a folder")
    for model in plan.loaded:
        model.checkpoint.check_ranks(ranks.size)
    with locked(folder):
        run = _open_or_start(request, plan, ranks.size)
        # Reads every finished cell, so a damaged one is refused before anything is written.
        worker = Worker(run, plan, on_progress, ranks, retry=request.retry)
        for model in worker.unfinished():
            model.checkpoint.check_weights(plan.device, model.dtype)
        run.write_specification()
        worker.work()
    return run


def _open_or_start(request: RunRequest, plan: RunPlan, ranks: int) -> Run:
    folder = request.out
    session = Session(
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
        from_python=True if request.from_python else None,
        kerple_eval=VERSION,
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=platform.platform(),
        threads=torch.get_num_threads(),
        ranks=ranks if ranks > 1 else None,
        transformers=_transformers(),
        device=torch.cuda.get_device_name() if plan.device.type == "cuda" else platform.machine(),
    )
    if not (folder / "run.json").exists():
        return Run(folder, plan.specification, replace(plan.provenance, sessions=(session,)))
    run = open_run(folder)
    refuse_another(run, plan.specification)
    run.provenance = replace(run.provenance, sessions=(*run.provenance.sessions, session))
    return run


def _transformers() -> str | None:
    """Its version where a model of this run needed it: numbers may differ between releases."""
    module = sys.modules.get("transformers")
    return None if module is None else str(module.__version__)
