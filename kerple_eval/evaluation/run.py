"""``evaluate``: plans a run, opens its directory and has its cells computed."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from kerple_eval.evaluation.plan import RunPlan
from kerple_eval.evaluation.planning import LENGTHS, make_plan
from kerple_eval.evaluation.ranks import RankGroup, SingleProcess, join_ranks
from kerple_eval.evaluation.worker import RunProgress, Worker
from kerple_eval.records.run import Run, open_run
from kerple_eval.records.specification import RunSpecification, Session
from kerple_eval.support.differences import differences
from kerple_eval.support.files import locked
from kerple_eval.support.typed_json import to_json
from kerple_eval.support.version import VERSION
from kerple_eval.types import BosRule, UserError


def evaluate(
    models: str | Sequence[str],
    *,
    out: str | Path,
    tasks: str | Sequence[str] = (),
    protocols: str | Sequence[str] | None = None,
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
    attention: str = "auto",
    precision: str | None = None,
    against: str | None = None,
    on_progress: Callable[[RunProgress], None] = lambda progress: None,
    command: Sequence[str] = (),
) -> Run:
    """Score every (model, task, protocol, length) into the run directory ``out``.

    The same as ``kerple-eval run``: finished cells are kept, failed ones tried again, and a directory
    that holds another specification is refused.

    Args:
        models: ``[LABEL=]FORMAT:PLACE[,key=value]`` or a directory, one or several.
        protocols: full-context unless given; answer, where every task is one that is made (passkey, ...).
        lengths: window lengths L in tokens.
        documents: how many documents; all eligible ones unless given.
        max_tokens: cut each document after so many tokens.
        bos: the first-token rule of every text, in place of a task's own: never, document, window or
            tokenizer (what each model's tokeniser does by itself; the default of ``text``).
        attention: auto, flex, sdpa or eager (``model.ways``); what is asked for by name is had or refused.
        precision: as ``"0.5%"``: score documents, doubling, until every perplexity (or its ratio to that
            of ``against``, a model's label) is known so well; ``documents`` is then the most to use.

        command: the words of the command line that asked, for the record; none where Python did.

    Returns:
        The run; ``run.summary()`` and ``run.losses()`` are pandas frames.

    Raises:
        UserError: something asked for is wrong; nothing was computed.
    """
    team = join_ranks()
    if isinstance(team, RankGroup) and team.rank:
        team.run_worker_loop(device, dtype, attention)
        if not (Path(out) / "run.json").is_file():
            sys.exit(0)  # refused before it began: rank 0 says why
        return open_run(out)
    try:
        plan = make_plan(
            _several(models),
            tasks=_several(tasks),
            protocols=None if protocols is None else _several(protocols),
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
            attention=attention,
            precision=precision,
            against=against,
        )
        return _run(plan, Path(out), on_progress, team, command)
    finally:
        team.release()


def _run(
    plan: RunPlan,
    folder: Path,
    on_progress: Callable[[RunProgress], None],
    team: SingleProcess,
    command: Sequence[str],
) -> Run:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --out must be a folder")
    with locked(folder):
        run = _open_or_start(folder, plan, team.size, command)
        worker = Worker(run, plan, on_progress, team)  # reads every finished cell, so refuses a damaged one
        run.write_specification()
        worker.work()
    return run


def _several(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _open_or_start(folder: Path, plan: RunPlan, ranks: int, command: Sequence[str]) -> Run:
    session = Session(
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(command),
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


def refuse_another(run: Run, specification: RunSpecification) -> None:
    """Refuse to go on into a run that was asked for otherwise."""
    different = differences(to_json(run.specification), to_json(specification))
    if different:
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise UserError(
            f"{run.folder}: holds a run with another specification: {different[0].describe()}{more}; "
            "choose another --out"
        )


def _transformers() -> str | None:
    """Its version where a model of this run needed it: numbers may differ between releases."""
    module = sys.modules.get("transformers")
    return None if module is None else str(module.__version__)
