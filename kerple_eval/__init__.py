"""kerple-eval: how well language models extrapolate to lengths they were not trained on.

The names are those of :mod:`kerple_eval.api`, imported at their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerple_eval.api import LanguageModel as LanguageModel
    from kerple_eval.api import Run as Run
    from kerple_eval.api import UserError as UserError
    from kerple_eval.api import Watch as Watch
    from kerple_eval.api import Window as Window
    from kerple_eval.api import __version__ as __version__
    from kerple_eval.api import convert as convert
    from kerple_eval.api import evaluate as evaluate
    from kerple_eval.api import from_module as from_module
    from kerple_eval.api import inspect as inspect
    from kerple_eval.api import merge as merge
    from kerple_eval.api import open_run as open_run
    from kerple_eval.api import read_lm_eval as read_lm_eval
    from kerple_eval.api import register_format as register_format
    from kerple_eval.api import register_protocol as register_protocol
    from kerple_eval.api import register_report as register_report
    from kerple_eval.api import register_scheme as register_scheme
    from kerple_eval.api import register_task as register_task
    from kerple_eval.api import score as score
    from kerple_eval.api import train as train

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


def __getattr__(name: str) -> Any:
    if name in __all__:
        from kerple_eval import api  # noqa: PLC0415 - so that the command line starts quickly

        return getattr(api, name)
    raise AttributeError(f"module 'kerple_eval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
