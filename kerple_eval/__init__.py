"""kerple-eval: how well language models extrapolate to lengths they were not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "UserError", "Window", "__version__", "evaluate", "open_run", "read_lm_eval"]

if TYPE_CHECKING:
    from kerple_eval.exchange import read_lm_eval
    from kerple_eval.records import Run, open_run
    from kerple_eval.run import evaluate
    from kerple_eval.types import UserError, Window

_LAZY = {
    "evaluate": "kerple_eval.run",
    "open_run": "kerple_eval.records",
    "read_lm_eval": "kerple_eval.exchange",
    "Run": "kerple_eval.records",
    "UserError": "kerple_eval.types",
    "Window": "kerple_eval.types",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that listing and reporting stay free of torch and pandas.
    if name in _LAZY:
        from importlib import import_module  # noqa: PLC0415

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kerple_eval' has no attribute {name!r}")
