"""A run of what Python hands over as values: models in memory, texts, token ids."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from os import PathLike
from typing import Any

from kerple_eval.evaluation import given
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.evaluation.run import run_request
from kerple_eval.evaluation.worker import RunProgress
from kerple_eval.records.run import Run


def run_values(
    models: Any,
    *,
    out: Any = None,
    tokenizer: Any = None,
    text: Any = (),
    column: str = "text",
    tokens: Any = (),
    bos: Any = None,
    device: Any = "auto",
    dtype: Any = None,
    divergence_from: Any = None,
    on_progress: Callable[[RunProgress], None] | None = None,
    **options: Any,
) -> Run:
    """See :func:`kerple_eval.evaluate`; ``options`` are the rest of a request's."""
    scratch = tempfile.TemporaryDirectory(prefix="kerple-eval-") if out is None else None
    names, in_memory = given.models(models, tokenizer, recorded=out is not None)
    if divergence_from is not None and not isinstance(divergence_from, str | PathLike):
        divergence_from = given.reference(divergence_from, tokenizer, in_memory, recorded=out is not None)
    text_files, token_files, values = given.texts(text, tokens, column, bos)
    with ExitStack() as stack:
        for model in in_memory.values():
            stack.enter_context(model.borrowed())
            model.measure_together()
        request = RunRequest.of(
            models=names, in_memory=in_memory, out=out if scratch is None else scratch.name,
            temporary=scratch is not None, text=text_files, tokens=token_files, values=values, bos=bos,
            device=given.device(device, in_memory), dtype=given.dtype(dtype, in_memory),
            divergence_from=divergence_from, **options,
        )  # fmt: skip
        run = run_request(request) if on_progress is None else run_request(request, on_progress)
    run.scratch = scratch
    return run
