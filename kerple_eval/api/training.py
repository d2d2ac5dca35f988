"""``train``: a small decoder with a positional scheme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerple_eval.models.training.state import TrainingStep

Words = str | PathLike[str] | Sequence[str | PathLike[str]]


def train(
    out: str | PathLike[str],
    *,
    length: int,
    scheme: str | None = None,
    start: str | PathLike[str] | None = None,
    extend: str | None = None,
    task: str | PathLike[str] | None = None,
    text: Words = (),
    seed: int = 1,
    steps: int = 2000,
    tokenizer: str | PathLike[str] | None = None,
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    tie_embeddings: bool | None = None,
    batch: int = 8,
    lr: float = 2e-3,
    warmup: int = 100,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    precision: str = "auto",
    store: str = "float32",
    ngram: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    on_report: Callable[[TrainingStep], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a small decoder into the folder ``out``; after a kill or Ctrl-C the same call goes on.

    Args:
        out: folder of the new checkpoint, for ``native:OUT``.
        length: tokens in a training sequence.
        scheme: positional scheme of a new model, as on the command line.
        start: a trained model to go on from, in place of ``scheme``; its sizes and tokeniser stay.
        extend: changes the scheme of ``start`` first: ``"yarn,factor=4"``.
        task: the task whose training split to learn from; or else
        text: files of your own.
        seed: of the initial weights and of the order of the text.
        steps: optimiser steps (AdamW).
        tokenizer: a ``tokenizer.json``; bytes unless given.
        layers, width, heads, tie_embeddings: sizes of a new model: 4 layers, 128 wide, 4 heads, an embedding
            and a head of their own, unless given.
        batch: sequences in a step.
        lr: highest learning rate, reached after ``warmup`` steps.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        precision: auto, float32 or bfloat16, of training.
        store: float32, bfloat16 or float16, of the stored weights.
        ngram: compare with an n-gram model of this order in the checkpoint's README.
        device: auto, cpu or cuda.
        threads: of the CPU; torch's own choice unless given.
        on_report: called about twenty times with training and held-out loss, nats per token.
        on_step: called after each step with its number and loss.

    Returns:
        The record of the training, as ``config.json`` carries it; ``held_out`` has the held-out loss.

    Raises:
        UserError: a setting that is wrong, text that cannot be read, or a folder that holds something else.
    """
    from kerple_eval.models.training.request import TrainingRequest  # noqa: PLC0415 - imports torch

    files = (text,) if isinstance(text, str | PathLike) else tuple(text)
    request = TrainingRequest(
        length=length, scheme=scheme, start=None if start is None else fspath(start), extend=extend,
        task=None if task is None else fspath(task), text=tuple(fspath(file) for file in files),
        seed=seed, steps=steps,
        tokenizer=None if tokenizer is None else fspath(tokenizer), layers=layers, width=width, heads=heads,
        tie_embeddings=tie_embeddings, batch=batch, lr=lr, warmup=warmup, weight_decay=weight_decay,
        clip=clip, precision=precision, store=store, ngram=ngram, device=device, threads=threads,
        command=("kerple_eval.train",),
    )  # fmt: skip
    return request.prepared().run(
        Path(out),
        on_report=on_report or (lambda report: None),
        on_step=on_step or (lambda step, loss: None),
    )
