"""Why a cell could not be computed: one line for the summary, and the whole traceback for the cell's file.

A cell may fail for a reason that its line says by itself: what was asked for cannot be done (``UserError``),
memory ran out, a loss is not finite. Any other error is located, as ``module:line``: in a model's own code or
in another package, or in this package, which is an *internal error*, a fault of kerple-eval. All of them are
recorded and the run goes on with the other cells, so that no model ends a sweep.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from kerple_eval.models.user_code import MODULE_PREFIX
from kerple_eval.types import UserError

#: Errors whose own words are enough.
SELF_EXPLAINING = (UserError, ArithmeticError, MemoryError, torch.OutOfMemoryError)
#: Packages that compute what they are told to: where one raises, the code that called it is at fault.
LIBRARIES = ("torch", "numpy", "safetensors")
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


def _origin(frame: FrameType) -> str:
    """The module of a frame; of a user's file (``python:FILE.py:FUNCTION``) the name of the file."""
    file = frame.f_code.co_filename
    module = str(frame.f_globals.get("__name__", file))
    return Path(file).name if module.startswith(MODULE_PREFIX) else module


def _located(line: str, error: BaseException) -> str:
    frames = [(_origin(frame), number) for frame, number in traceback.walk_tb(error.__traceback__)]
    if not frames:
        return line
    if frames[-1][0] == "kerple_eval.evaluation.ranks":  # raised there for a rank that sent it
        return f"{line} (on another rank: the traceback in the cell's file says where)"
    callers = [frame for frame in frames if frame[0].partition(".")[0] not in LIBRARIES]
    module, number = (callers or frames)[-1]
    where = f"{line} (at {module}:{number})"
    if module.partition(".")[0] == "kerple_eval":
        return f"internal error, a fault of kerple-eval: {where}; please report it with the cell's file"
    return where
