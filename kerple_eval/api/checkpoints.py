"""``inspect`` and ``convert``: what a model is, and any checkpoint in the native format."""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerple_eval.models.base import Description


def inspect(model: Any, *, tokenizer: Any = None) -> dict[str, Any]:
    """What a model is, before a GPU hour is spent on it; no weights are read but the scheme's.

    Args:
        model: MODEL as on the command line (``"zoo:alibi"``, a folder), or a model in memory (see
            :func:`kerple_eval.evaluate`).
        tokenizer: what reads text for a model in memory.

    Returns:
        ``format``, ``architecture``, ``parameters`` (their number), ``scheme``, ``scheme_parameters`` (name
        -> values), ``train_length`` and ``max_length`` (tokens; None: unknown, no limit),
        ``prefix_invariant``, ``seed``, ``vocab_size``, ``tokenizer`` (its identity), ``stored_dtypes``,
        ``weights_sha256``, ``details``, ``memory`` (length -> dtype -> bytes of one forward pass with the
        weights; empty where the model's sizes are not known) and ``warnings``.

    Raises:
        UserError: no such model, or a damaged one.
    """
    from kerple_eval.evaluation.inspection import facts  # noqa: PLC0415 - what follows imports torch
    from kerple_eval.models.in_memory import InMemoryCheckpoint, tokenizer_of  # noqa: PLC0415
    from kerple_eval.models.open import open_model, parse_model  # noqa: PLC0415

    if isinstance(model, str | PathLike):
        return facts(open_model(parse_model(fspath(model))))
    held = model if isinstance(model, InMemoryCheckpoint) else InMemoryCheckpoint(model)
    held = held.completed(tokenizer_of(tokenizer), "not recorded")
    with held.borrowed():
        return facts(held)


def convert(model: str | PathLike[str], out: str | PathLike[str], *, dtype: str | None = None) -> Description:
    """Write a checkpoint into the new folder ``out`` in the native format, whole or not at all.

    Args:
        model: MODEL as on the command line.
        out: a folder that does not exist, or is empty.
        dtype: float32, bfloat16 or float16 of the written weights; the narrowest that keeps each one exactly
            unless given.

    Returns:
        What was written, read back from the disk; its warnings are those of reading ``model``.

    Raises:
        UserError: the checkpoint cannot be read or has no native form, or the folder exists and is not empty.
    """
    from kerple_eval.models import conversion  # noqa: PLC0415 - imports torch

    return conversion.convert(model, out, dtype=dtype)
