"""Why a cell could not be computed: one line for the summary, and the whole traceback for the cell's file.

A cell may fail for a reason that its line says by itself: what was asked for cannot be done (``UserError``),
memory ran out, a loss is not finite. Any other error is located, as ``module:line``: in a model's own code or
in another package, or in this package, which is an *internal error*, a fault of kerple-eval. All of them are
recorded and the run goes on with the other cells, so that no model ends a sweep.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import torch

from kerple_eval.models.user_code import frames_of
from kerple_eval.types import UserError

#: Errors whose own words are enough.
SELF_EXPLAINING = (UserError, ArithmeticError, MemoryError, torch.OutOfMemoryError)
LONGEST = 300  # characters of an error's own words


@dataclass(frozen=True)
class Failure:
    """``error``: the line for ``summary.csv``; ``traceback``: for the cell's file."""

    error: str
    traceback: str


def failure_of(error: BaseException) -> Failure:
    """The record of an error raised by loading a model or scoring a cell."""
    words = " ".join(str(error).split())[:LONGEST]
    line = f"{type(error).__name__}: {words}"
    if not (isinstance(error, SELF_EXPLAINING) or _is_out_of_memory(error)):
        line = _located(line, error)
    return Failure(line, "".join(traceback.format_exception(error)))


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has no class for this error of its CPU allocator, a RuntimeError that names it."""
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _located(line: str, error: BaseException) -> str:
    frames = frames_of(error)
    if not frames:
        return line
    module, number = frames[-1]
    if module == "kerple_eval.evaluation.ranks":  # raised there for a rank that sent it
        return f"{line} (on another rank: the traceback in the cell's file says where)"
    if module == "kerple_eval.models.callable":  # which does nothing but call it
        return f"{line} (the model was called with ids [B, N])"
    where = f"{line} (at {module}:{number})"
    if module.partition(".")[0] == "kerple_eval":
        return f"internal error, a fault of kerple-eval: {where}; please report it with the cell's file"
    return where
