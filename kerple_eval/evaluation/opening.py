"""The models that a request names, opened and checked one by one; no weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kerple_eval.evaluation.checks import choose_attention
from kerple_eval.evaluation.failures import failure_of
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.models.base import Checkpoint
from kerple_eval.models.devices import scoring_dtype
from kerple_eval.models.open import ModelSpec, in_memory_spec, open_model, parse_model
from kerple_eval.types import UserError


def parsed(model: str, request: RunRequest) -> ModelSpec:
    """What a MODEL argument says, or the label of a model in memory."""
    held = request.in_memory
    return in_memory_spec(model, held[model].name) if model in held else parse_model(model)


def open_checkpoint(
    model: str, spec: ModelSpec, label: str, request: RunRequest, device: torch.device
) -> tuple[Checkpoint, torch.dtype]:
    """The checkpoint, with its attention backend chosen and its description made, and what it is scored in.

    Raises:
        UserError: it cannot be opened, or not be scored so.
    """
    with _refused_as(label):
        held: Checkpoint | None = request.in_memory.get(model)
        checkpoint = open_model(spec) if held is None else held
        dtype = scoring_dtype(request.dtype, checkpoint, device)
        choose_attention([checkpoint], [label], request.attention, device, dtype)
        _ = checkpoint.description
    return checkpoint, dtype


@contextmanager
def _refused_as(label: str) -> Iterator[None]:
    """Whatever a model's own code or another package raises while it is opened refuses that model."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a file of Python may leave the program
        raise UserError(f"model {label}: cannot be opened: {failure_of(error).error}") from error
