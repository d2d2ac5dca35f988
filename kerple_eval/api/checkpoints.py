"""``inspect`` and ``convert``: what a model is, and any checkpoint in the native format."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from kerple_eval.models.base import Checkpoint, Description
    from kerple_eval.models.decoder.network import Decoder


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
    from kerple_eval.models.in_memory import InMemoryCheckpoint, tokenizer_of  # noqa: PLC0415 - imports torch
    from kerple_eval.models.open import open_model, parse_model  # noqa: PLC0415

    if isinstance(model, str | PathLike):
        return facts(open_model(parse_model(fspath(model))))
    held = model if isinstance(model, InMemoryCheckpoint) else InMemoryCheckpoint(model)
    held = held.completed(tokenizer_of(tokenizer), "not recorded")
    with held.borrowed():
        return facts(held)


def facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What :func:`inspect` returns, of an open checkpoint."""
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
        "weights_sha256": about.weights_sha256,
        "details": about.details,
        "memory": _memory(about),
        "warnings": about.warnings,
    }


def _memory(about: Description) -> dict[int, dict[str, int]]:
    """Bytes of the weights and one forward pass, at each length that the model has positions for."""
    from kerple_eval.evaluation.request import LENGTHS  # noqa: PLC0415
    from kerple_eval.models.devices import DTYPES  # noqa: PLC0415
    from kerple_eval.models.footprint import window_bytes  # noqa: PLC0415

    return {
        length: {name: window_bytes(about, length, DTYPES[name].itemsize) for name in ("float32", "bfloat16")}
        for length in LENGTHS
        if about.shape.layers and (about.max_length is None or length <= about.max_length)
    }


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
    from kerple_eval.models.devices import DTYPES  # noqa: PLC0415 - what follows imports torch
    from kerple_eval.models.native import NativeCheckpoint, write_checkpoint  # noqa: PLC0415
    from kerple_eval.models.open import open_model, parse_model  # noqa: PLC0415
    from kerple_eval.support.files import new_folder  # noqa: PLC0415
    from kerple_eval.support.registry import unknown  # noqa: PLC0415
    from kerple_eval.support.version import VERSION  # noqa: PLC0415
    from kerple_eval.types import UserError  # noqa: PLC0415

    if not isinstance(model, str | PathLike):
        raise UserError(f"convert takes a MODEL as on the command line, got {type(model).__name__}")
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    folder = Path(out)
    checkpoint = open_model(parse_model(fspath(model)))
    about = checkpoint.description
    with new_folder(folder) as partial:
        decoder = checkpoint.decoder()
        write_checkpoint(
            partial,
            decoder,
            seed=about.seed,
            dtype=DTYPES[dtype] if dtype else _narrowest(decoder),
            tokenizer=checkpoint.tokenizer,
            training={
                "converted_from": {
                    "format": about.format,
                    "architecture": about.architecture,
                    "weights_sha256": about.weights_sha256,
                    "warnings": list(about.warnings),
                    "kerple_eval": VERSION,
                }
            },
        )
    return replace(NativeCheckpoint(folder).description, warnings=about.warnings)


def _narrowest(decoder: Decoder) -> torch.dtype:
    """The narrowest dtype that holds every weight exactly (the scheme's stay in float32 anyway)."""
    import torch  # noqa: PLC0415

    weights = [p for name, p in decoder.named_parameters() if not name.startswith("scheme.")]
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(p.to(dtype).to(p.dtype), p) for p in weights):
            return dtype
    return torch.float32
