"""What a model is, before it is scored: for ``kerple-eval inspect`` and ``kerple_eval.inspect``."""

from __future__ import annotations

from typing import Any

from kerple_eval.evaluation.request import LENGTHS
from kerple_eval.models.base import Checkpoint, Description
from kerple_eval.models.devices import DTYPES, bfloat16_instructions
from kerple_eval.models.footprint import window_bytes


def facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What :func:`kerple_eval.inspect` returns, of an open checkpoint."""
    about = checkpoint.description
    tokenizer = checkpoint.tokenizer
    return {
        "format": about.format,
        "architecture": about.architecture,
        "parameters": about.parameters,
        "scheme": about.scheme,
        "scheme_parameters": checkpoint.scheme_parameters(),
        "train_length": about.train_length,
        "max_length": about.max_length,
        "prefix_invariant": about.prefix_invariant,
        "seed": about.seed,
        "vocab_size": about.vocab_size,
        "tokenizer": None if tokenizer is None else tokenizer.identity,
        "stored_dtypes": about.stored_dtypes,
        "bfloat16_instructions": bfloat16_instructions(),
        "weights_sha256": about.weights_sha256,
        "details": about.details,
        "memory": _memory(about),
        "warnings": about.warnings,
    }


def bfloat16_on_cpu(instructions: list[str]) -> str:
    """What ``--dtype bfloat16`` gains and costs on this machine's CPU, as measured (docs/models.md)."""
    if not instructions:
        return "no instructions for it: slower than float32, and mean losses move by up to 0.006 nats"
    return f"by {' and '.join(instructions)}: some 2 x as fast, and mean losses move by up to 0.006 nats"


def _memory(about: Description) -> dict[int, dict[str, int]]:
    """Bytes of the weights and one forward pass, at each length that the model has positions for."""
    return {
        length: {name: window_bytes(about, length, DTYPES[name].itemsize) for name in ("float32", "bfloat16")}
        for length in LENGTHS
        if about.shape.layers and (about.max_length is None or length <= about.max_length)
    }
