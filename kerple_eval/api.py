"""What a script or notebook calls, as ``kerple_eval.evaluate``, ``kerple_eval.open_run``, ...

Imports no torch: reading a run stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from kerple_eval.records.run import Run, open_run
from kerple_eval.reports.lm_eval import read_lm_eval
from kerple_eval.support.version import VERSION
from kerple_eval.types import BosRule, UserError, Window

if TYPE_CHECKING:
    import torch

    from kerple_eval.evaluation.worker import RunProgress

__version__ = VERSION

__all__ = ["Run", "UserError", "Window", "__version__", "evaluate", "open_run", "read_lm_eval"]

Words = str | PathLike[str] | Sequence[str | PathLike[str]]


def evaluate(
    models: Words,
    *,
    out: str | PathLike[str],
    tasks: Words = (),
    protocols: str | Sequence[str] | None = None,
    lengths: int | str | Sequence[int | str] | None = None,
    text: Words = (),
    tokens: Words = (),
    documents: int | None = None,
    keep_short: bool = False,
    max_tokens: int | None = None,
    seed: int | None = None,
    bos: BosRule | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    attention: str = "auto",
    precision: str | None = None,
    against: str | None = None,
    retry: bool = False,
    on_progress: Callable[[RunProgress], None] | None = None,
) -> Run:
    """Score every (model, task, protocol, length) into the run directory ``out``.

    The same as ``kerple-eval run``: finished cells are kept, failed ones are tried again, and a directory
    that holds a run with another specification is refused.

    Args:
        models: one MODEL or several, each ``[LABEL=]FORMAT:PATH[,key=value]`` (``zoo:alibi``,
            ``hf:/models/llama``) or a directory that holds a checkpoint.
        out: the run directory; it is made where it does not exist.
        tasks: task names or task files.
        protocols: how documents are cut into windows, ``NAME:key=value``, with ``@N`` after it for lengths
            up to N only. full-context unless given; answer where every task is made by length (passkey,
            needle, ...).
        lengths: window lengths L in tokens, as numbers or as on the command line (``"512..16k"``). 512 to
            16,384, doubling, unless given.
        text: text files of your own: a document a file, or a document a line of a ``.jsonl`` file.
        tokens: files of token ids, used as given.
        documents: the number of documents of each task; all that are long enough unless given.
        keep_short: score also documents with fewer tokens than the longest length needs.
        max_tokens: cut each document after this many tokens.
        seed: draws the documents where ``documents`` is less than all; the task's own unless given.
        bos: the first-token rule of every text in place of the task's own: never, document, window or
            tokenizer (as the model's tokeniser does by itself; the default for ``text``).
        device: auto (CUDA where there is a card, else the CPU), cpu or cuda.
        dtype: float32, bfloat16, float16 or float64: the precision that models are scored in.
        attention: auto, flex, sdpa or eager: how attention is computed. A named one is used or, where a
            model cannot be computed so, refused.
        precision: a percentage (``"0.5%"``): documents are scored, 10, 20, 40, ..., until every perplexity,
            or its ratio to that of ``against``, is known within it with 95 % certainty; ``documents`` is
            then the most to score.
        against: with ``precision``, the label of the model that the others are compared with.
        retry: try again also cells whose processes were killed (by the kernel for want of memory, say),
            which are recorded as failed.
        on_progress: called before and after every cell and every forward pass, with a ``RunProgress``.

    Returns:
        The run; ``run.summary()`` and ``run.losses()`` are pandas frames, losses in nats per target.

    Raises:
        UserError: something that was asked for is wrong, in one line; nothing was computed.
    """
    from kerple_eval.evaluation.request import RunRequest  # noqa: PLC0415 - what follows imports torch
    from kerple_eval.evaluation.run import run_request  # noqa: PLC0415

    request = RunRequest.of(
        models=models, out=out, tasks=tasks, protocols=protocols, lengths=lengths, text=text, tokens=tokens,
        documents=documents, keep_short=keep_short, max_tokens=max_tokens, seed=seed, bos=bos, device=device,
        dtype=dtype, attention=attention, precision=precision, against=against, retry=retry,
    )  # fmt: skip
    return run_request(request) if on_progress is None else run_request(request, on_progress)
