"""Reductions of losses, and how sure they are. Imports no torch, and SciPy only where it is used.

    reductions  sums, means, perplexity, loss by context
    documents   a cell's sums and counts by document
    intervals   intervals of a ratio of sums: linearised (the default) and bootstrap
    seeds       mean and spread over seeds; seeds and documents as crossed random effects
    tests       sign-flip permutation and t-test of paired differences; Holm's correction
    groups      finished cells of runs, gathered by scheme with their seeds
    compare     two schemes on the same targets: all of the above
    answers     exact matches and losses of made documents, by depth
    longppl     perplexity on the tokens that need long context
    looks       when to stop adding documents

Units: losses in nats per target; sums in float64.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kerple_eval.stats.reductions import (
    bits_per_byte,
    contexts,
    loss_by_context,
    mean_loss,
    perplexity,
    total_loss,
)

if TYPE_CHECKING:
    from kerple_eval.stats import answers as answers
    from kerple_eval.stats import compare as compare
    from kerple_eval.stats import documents as documents
    from kerple_eval.stats import groups as groups
    from kerple_eval.stats import intervals as intervals
    from kerple_eval.stats import looks as looks
    from kerple_eval.stats import seeds as seeds
    from kerple_eval.stats import tests as tests

__all__ = ["bits_per_byte", "contexts", "loss_by_context", "mean_loss", "perplexity", "total_loss"]

_PARTS = ("answers", "compare", "documents", "groups", "intervals", "looks", "seeds", "tests")


def __getattr__(name: str) -> Any:
    """``stats.intervals`` and the other parts, imported at their first use."""
    if name in _PARTS:
        return import_module(f"kerple_eval.stats.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
