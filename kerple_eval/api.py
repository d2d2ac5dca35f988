"""What a script or notebook calls, as ``kerple_eval.evaluate``, ``kerple_eval.open_run``, ..."""

from __future__ import annotations

from kerple_eval.evaluation.run import evaluate
from kerple_eval.records.run import Run, open_run
from kerple_eval.reports.lm_eval import read_lm_eval
from kerple_eval.support.version import VERSION
from kerple_eval.types import UserError, Window

__version__ = VERSION

__all__ = ["Run", "UserError", "Window", "__version__", "evaluate", "open_run", "read_lm_eval"]
