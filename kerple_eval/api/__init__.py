"""What a script or notebook calls, as ``kerple_eval.evaluate``, ``kerple_eval.open_run``, ...

Imports no torch: reading a run stays quick.
"""

from __future__ import annotations

from kerple_eval.api.checkpoints import convert, inspect
from kerple_eval.api.evaluate import evaluate, from_module, score
from kerple_eval.api.register import (
    register_format,
    register_protocol,
    register_report,
    register_scheme,
    register_task,
)
from kerple_eval.api.run import Run, merge, open_run
from kerple_eval.api.training import train
from kerple_eval.api.watch import Watch
from kerple_eval.models.base import LanguageModel
from kerple_eval.reports.lm_eval import read_lm_eval
from kerple_eval.support.version import VERSION
from kerple_eval.types import UserError, Window

__version__ = VERSION

__all__ = [
    "LanguageModel",
    "Run",
    "UserError",
    "Watch",
    "Window",
    "__version__",
    "convert",
    "evaluate",
    "from_module",
    "inspect",
    "merge",
    "open_run",
    "read_lm_eval",
    "register_format",
    "register_protocol",
    "register_report",
    "register_scheme",
    "register_task",
    "score",
    "train",
]
