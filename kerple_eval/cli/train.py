"""``kerple-eval train``: options to a recipe and a corpus, progress, the closing lines."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kerple_eval.cli.errors import BrokenOffError, typed_words
from kerple_eval.evaluation.request import parse_lengths
from kerple_eval.evaluation.watch import Watch
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.in_memory import InMemoryCheckpoint
from kerple_eval.models.training.request import Training, TrainingRequest
from kerple_eval.models.training.state import TrainingStep
from kerple_eval.types import UserError


def run(
    out: str,
    watch: str | None = None,
    watch_every: int | None = None,
    log_to: str | None = None,
    **options: Any,
) -> None:
    """Train as the options of the command say, with a bar; ends with the held-out loss."""
    request = TrainingRequest(**options, command=typed_words())
    training = request.prepared()
    name = training.recipe.model.scheme_name
    every = (watch_every or max(1, request.steps // 20)) if watch else watch_every
    watched = _watch(watch, training, out, every=every, log_to=log_to)
    console = Console(stderr=True)
    progress = Progress(
        TextColumn(f"train {name}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip
    bar = progress.add_task("train", total=request.steps, note="")
    computed = 0

    def on_step(step: int, loss: float) -> None:
        nonlocal computed
        if not computed:  # a refusal before the first step is one line, without a bar above it
            progress.start()
        computed = step
        progress.update(bar, completed=step, note=f"loss {loss:.3f}")

    def on_report(report: TrainingStep) -> None:
        progress.console.out(
            f"step {report.step}: training {report.train_loss:.4f}, "
            f"held out {report.held_out_loss:.4f} nats per token "
            f"(perplexity {math.exp(report.held_out_loss):.3f}), {report.seconds:.0f} s",
            highlight=False,
        )

    try:
        try:
            result = training.run(
                Path(out), on_report=on_report, on_step=on_step, watch=watched, watch_every=every or 0
            )
        finally:
            if computed:
                progress.stop()
    except UserError as error:
        if computed:
            raise BrokenOffError(str(error)) from error
        raise
    except KeyboardInterrupt:
        console.out(f"stopped; the same command continues from {out}", highlight=False)
        sys.exit(130)
    source = ["--task", request.task] if request.task else ["--text", request.text[0]]
    _say_result(out, result, request.length, source, watched=watch is not None)


def _say_result(out: str, result: dict[str, Any], length: int, source: list[str], *, watched: bool) -> None:
    held_out = result["held_out"]
    bits = held_out["bits_per_byte"]
    figure = f"{bits:.4f} bits per byte" if bits is not None else f"{held_out['nll']:.4f} nats"
    print(f"{out}: held-out {figure} at {length} over {held_out['targets']} targets")
    if watched:
        print(f"figure: kerple-eval plot {out}-watch --kind training --out {out}-watch/training.png")
    print("next: " + shlex.join(["kerple-eval", "run", f"native:{out}", *source, "--out", "runs/first"]))


def _watch(
    lengths: str | None, training: Training, out: str, **options: Any
) -> Callable[[Decoder, int], None]:
    """Scores the held-out text at several lengths while it trains, into the run ``OUT-watch``."""
    if lengths is None:
        for name, option in (("every", "--watch-every"), ("log_to", "--log-to")):
            if options[name] is not None:
                raise UserError(f"{option} goes with --watch LENGTHS")
        return lambda decoder, step: None
    recipe = training.recipe
    scored = Watch(
        (), parse_lengths(lengths), out=f"{out}-watch", **options,
        name=Path(out).name, tokens=[document.ids for document in training.corpus.held_out], keep_short=True,
    )  # fmt: skip

    def watched(decoder: Decoder, step: int) -> None:
        model = DecoderModel(decoder, torch.device(recipe.device), torch.float32)
        about = InMemoryCheckpoint(
            model, scheme=recipe.model.scheme_name, train_length=recipe.model.train_length, seed=recipe.seed
        )
        scored(about, step)
        decoder.train()

    return watched
