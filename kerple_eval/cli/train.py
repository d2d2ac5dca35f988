"""``kerple-eval train``: options to a recipe and a corpus, progress, the closing lines."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Sequence
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
from kerple_eval.data.task import parse_task
from kerple_eval.data.tokenizer import ByteTokenizer, JsonTokenizer
from kerple_eval.evaluation.request import parse_lengths
from kerple_eval.evaluation.watch import Watch
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.devices import DTYPES, precision_for, resolve_device
from kerple_eval.models.in_memory import InMemoryCheckpoint
from kerple_eval.models.training.corpus import Corpus, training_corpus
from kerple_eval.models.training.ngram import bits_per_byte
from kerple_eval.models.training.start import start_from
from kerple_eval.models.training.state import TrainingStep
from kerple_eval.models.training.train import Recipe, train
from kerple_eval.schemes.spelling import parse_scheme
from kerple_eval.types import UserError


def run(
    *,
    scheme: str | None, start: str | None, extend: str | None, task: str | None, text: tuple[str, ...],
    length: int, seed: int, steps: int, out: str, tokenizer: str | None, layers: int, width: int, heads: int,
    batch: int, lr: float, warmup: int, weight_decay: float, clip: float, precision: str, store: str,
    ngram: int | None, device: str, threads: int | None, tie_embeddings: bool, sizes_given: Sequence[str],
    watch: str | None, watch_every: int | None,
) -> None:  # fmt: skip
    if (task is None) == (not text):
        raise UserError("train needs text: either --task NAME or --text FILE")
    _check_start(scheme, start, extend, sizes_given)
    resolved = resolve_device(device)
    going_on = start_from(start, extend, length, seed, tokenizer) if start else None
    if going_on is not None:
        tokeniser, model = going_on.tokenizer, going_on.decoder.config
    else:
        tokeniser = JsonTokenizer(Path(tokenizer)) if tokenizer else ByteTokenizer()
        model = _new_model(
            scheme or "", vocab_size=tokeniser.vocab_size, layers=layers, width=width, heads=heads,
            train_length=length, tie_embeddings=tie_embeddings,
        )  # fmt: skip
    scheme_of(model)  # refuses a wrong name or option before any text is read
    if ngram is not None and not isinstance(tokeniser, ByteTokenizer):
        raise UserError("--ngram counts bytes; it cannot be used with another tokeniser")
    recipe = Recipe(
        model=model, seed=seed, steps=steps, batch=batch, learning_rate=lr, warmup=warmup,
        weight_decay=weight_decay, beta1=0.9, beta2=0.95, clip=clip,
        precision=precision_for(precision, resolved), device=resolved.type,
        threads=threads or torch.get_num_threads(),
        start=going_on.record["weights_sha256"] if going_on else "",
    )  # fmt: skip
    corpus = training_corpus(parse_task(task) if task else None, text, tokeniser)
    watched = _watch(watch, watch_every, recipe, corpus, out)
    console = Console(stderr=True)
    record: dict[str, Any] = {"command": list(typed_words())}
    if going_on is not None:
        record["from"] = going_on.record
    if ngram is not None:
        record["ngram"] = {"order": ngram, "bits_per_byte": _ngram(corpus, ngram)}
    progress = Progress(
        TextColumn(f"train {model.scheme_name}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip
    bar = progress.add_task("train", total=steps, note="")
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
            result = train(
                recipe, corpus, Path(out), weights_dtype=DTYPES[store],
                tokenizer=tokeniser, start=going_on.decoder if going_on else None, record=record,
                on_report=on_report, on_step=on_step, watch=watched,
            )  # fmt: skip
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
    _say_result(out, result, length, ["--task", task] if task else ["--text", text[0]], watched=bool(watch))


def _say_result(out: str, result: dict[str, Any], length: int, source: list[str], *, watched: bool) -> None:
    held_out = result["held_out"]
    bits = held_out["bits_per_byte"]
    figure = f"{bits:.4f} bits per byte" if bits is not None else f"{held_out['nll']:.4f} nats"
    print(f"{out}: held-out {figure} at {length} over {held_out['targets']} targets")
    if watched:
        print(f"figure: kerple-eval plot {out}-watch --kind training --out {out}-watch/training.png")
    print("next: " + shlex.join(["kerple-eval", "run", f"native:{out}", *source, "--out", "runs/first"]))


def _watch(
    lengths: str | None, every: int | None, recipe: Recipe, corpus: Corpus, out: str
) -> Callable[[Decoder, int], None]:
    """Scores the held-out text at several lengths while it trains, into the run ``OUT-watch``."""
    if lengths is None:
        if every is not None:
            raise UserError("--watch-every goes with --watch LENGTHS")
        return lambda decoder, step: None
    scored = Watch(
        (), parse_lengths(lengths), every=every or max(1, recipe.steps // 20), out=f"{out}-watch",
        name=Path(out).name, tokens=[document.ids for document in corpus.held_out], keep_short=True,
    )  # fmt: skip

    def watched(decoder: Decoder, step: int) -> None:
        if step % scored.every:
            return
        model = DecoderModel(decoder, torch.device(recipe.device), torch.float32)
        about = InMemoryCheckpoint(
            model, scheme=recipe.model.scheme_name, train_length=recipe.model.train_length, seed=recipe.seed
        )  # fmt: skip
        scored(about, step)
        decoder.train()

    return watched


def _new_model(
    scheme: str,
    *,
    vocab_size: int,
    layers: int,
    width: int,
    heads: int,
    train_length: int,
    tie_embeddings: bool,
) -> DecoderConfig:
    spec = parse_scheme(scheme)
    return DecoderConfig(
        vocab_size=vocab_size, layers=layers, width=width, heads=heads, mlp_width=4 * width,
        train_length=train_length, scheme=spec.name, scheme_options=dict(spec.options),
        modifiers=dict(spec.modifier_options), tie_embeddings=tie_embeddings,
    )  # fmt: skip


def _check_start(
    scheme: str | None, start: str | None, extend: str | None, sizes_given: Sequence[str]
) -> None:
    if (scheme is None) == (start is None):
        raise UserError(
            "train needs either --scheme SCHEME, for a new model, or --from MODEL, to go on from one"
        )
    if extend is not None and start is None:
        raise UserError("--extend changes the scheme of a trained model: it goes with --from MODEL")
    if start is not None and sizes_given:
        option = "--" + sizes_given[0].replace("_", "-")
        raise UserError(f"{option} is a size of a new model; --from {start} keeps its own: leave it out")


def _ngram(corpus: Corpus, order: int) -> float:
    return bits_per_byte([d.ids for d in corpus.train], [d.ids for d in corpus.held_out], order)
