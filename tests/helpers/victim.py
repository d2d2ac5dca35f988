"""A process of its own that runs a command and kills itself with SIGKILL at a chosen write."""

from __future__ import annotations

import contextlib
import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.helpers import warm

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload([warm.__name__])  # a name that cannot be imported would be passed over


def _run(arguments: dict[str, Any], at: int, when: str) -> None:
    import torch  # noqa: PLC0415

    import kerple_eval  # noqa: PLC0415
    from kerple_eval.evaluation import worker  # noqa: PLC0415

    worker.SUMMARY_EVERY = 0.0  # after every cell, so that the writes can be counted
    torch.set_num_threads(1)
    real = Path.replace
    count = 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == at and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = real(self, target)
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    Path.replace = replace  # type: ignore[method-assign,assignment]
    with contextlib.redirect_stderr(None):
        kerple_eval.evaluate(**arguments)


def killed_at(arguments: dict[str, Any], at: int, when: str) -> bool:
    """Evaluate in a process that dies ``before`` or ``after`` its ``at``-th file is renamed into place.

    Whether it was killed; False where it finished first.
    """
    process = CONTEXT.Process(target=_run, args=(arguments, at, when))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0
