"""The ``kerple-eval`` command: thin click commands over the package.

Heavy imports (torch, pandas, matplotlib) happen inside the commands, so that help, listing and reports
start quickly. A user's mistake becomes one line, see ``errors.py``; commands that read runs stand in
``reading.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kerple_eval.cli import reading
from kerple_eval.cli.errors import CommandGroup, typed_words
from kerple_eval.cli.parameters import TRACEBACK, FiniteNumber, Tokens, at_least, folders, not_empty, out
from kerple_eval.support.interrupts import exit_on_interrupt
from kerple_eval.support.version import VERSION

COMMAND_SECTIONS = {
    "Score models": ("run", "demo"),
    "Look at results": ("table", "report", "plot"),
    "Compare and explain": ("compare", "intervals", "reach", "explain", "answers", "longppl"),
    "Make models and move results": ("train", "convert", "merge", "export"),
    "Find out": ("inspect", "list"),
}


@click.group(
    cls=CommandGroup,
    sections=COMMAND_SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(VERSION, prog_name="kerple-eval")
@click.option("--traceback", is_flag=True, help=TRACEBACK)
def cli(traceback: bool) -> None:
    """Score language models at lengths beyond those they were trained on.

    \b
    Examples:
      kerple-eval demo
      kerple-eval run zoo:alibi zoo:rope --task sotu --length 512..16k --out runs/first
      kerple-eval report runs/first
    """


@cli.command(short_help="Score models at every length; ends with the table.")
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--task", "tasks", multiple=True, metavar="TASK",
    help="A task's name (see kerple-eval list tasks), a task file, or a data set of the hub: "
    "hf:ORG/NAME,split=test,column=text. Repeat for more.",
)  # fmt: skip
@click.option(
    "--text", multiple=True, metavar="FILE",
    help="Text of your own: a file, a folder, or a file of rows (.jsonl, .json, .csv, .parquet; also "
    "FILE,column=NAME,join=blank-line), compressed or not. Repeat for more.",
)  # fmt: skip
@click.option(
    "--tokens", multiple=True, metavar="FILE",
    help='Token ids, used as given: JSON lines {"tokens": [...]}, or a memory-mapped data set of GPT-NeoX '
    "or Megatron-LM, PREFIX.idx beside PREFIX.bin. Repeat for more.",
)  # fmt: skip
@click.option(
    "--protocol", "protocols", multiple=True, default=("full-context",), show_default=True,
    metavar="PROTOCOL",
    help="How documents are cut into windows: NAME:key=value (see kerple-eval list protocols), with @N after "
    "it for lengths up to N only. Repeat for more.",
)  # fmt: skip
@click.option(
    "--length", "lengths", multiple=True, default=("512,1024,2048,4096,8192,16384",), show_default=True,
    metavar="LENGTHS", help="Window lengths in tokens: 512,1024 or 512..16k (doubling). Repeat for more.",
)  # fmt: skip
@out("Run directory. If it holds a run of the same command, that run is continued.")
@click.option(
    "--documents", type=at_least(1), metavar="N",
    help="Number of documents of each task; all that are long enough unless given.",
)  # fmt: skip
@click.option("--keep-short", is_flag=True, help="Score also documents shorter than the longest length.")
@click.option("--max-tokens", type=Tokens(2), metavar="N", help="Cut each document after N tokens.")
@click.option(
    "--seed", type=at_least(0), metavar="N",
    help="Seed that draws the documents; the task's own unless given.",
)  # fmt: skip
@click.option(
    "--bos", type=click.Choice(["never", "document", "window", "tokenizer"]),
    help="First-token marker (BOS): none, at the start of each document, at the start of each window (as one "
    "of its L tokens), or what the model's tokeniser puts. Unless given: the task's own rule; tokenizer for "
    "--text.",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where to score; auto is CUDA where there is a card.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16", "float64"]), default="auto",
    show_default=True,
    help="Precision in which models are scored; auto is that of the file for a Hugging Face model on CUDA, "
    "else float32.",
)  # fmt: skip
@click.option(
    "--attention", type=click.Choice(["auto", "flex", "sdpa", "pruned", "eager"]),
    default="auto", show_default=True,
    help="How attention is computed; a backend chosen by name is used or refused, never replaced.",
)  # fmt: skip
@click.option(
    "--piece", type=at_least(1), metavar="N",
    help="Feed windows longer than N tokens in pieces of N, with the model's own cache, so that activations "
    "are those of a piece (models of transformers). Unless given: where a window would not fit in memory.",
)  # fmt: skip
@click.option(
    "--precision", metavar="P%",
    help="Score 10 documents, 20, 40, ... until every perplexity is known within P% (as 0.5%), with 95 % "
    "certainty; --documents is then the most to score.",
)  # fmt: skip
@click.option(
    "--against", metavar="MODEL",
    help="With --precision: make sure of each perplexity's ratio to this model's instead.",
)  # fmt: skip
@click.option(
    "--divergence-from", metavar="MODEL", callback=not_empty,
    help="Keep of every target how far each model's prediction is from this one's: MODEL, the label of a "
    "model of the run, or self@N, each model itself at length N. Of a finished run only what is missing is "
    "computed.",
)  # fmt: skip
@click.option("--retry", is_flag=True, help="Try again also cells in which the process was killed.")
@click.option(
    "--dry-run", is_flag=True, help="Print what the run would take (windows, work, memory, time), and stop."
)  # fmt: skip
@click.pass_context
def run(context: click.Context, /, protocols: tuple[str, ...], dry_run: bool, **options: Any) -> None:
    """Score models at every length; ends with the table.

    MODEL is zoo:NAME, hf:PATH_OR_ID, neox:DIR, native:DIR or a directory, with LABEL= before it and
    ,key=value after it where wanted. A finished cell is never computed again: after a kill or Ctrl-C the
    same command goes on. Synthetic tasks (passkey, needle, copy, associative-recall) are scored by the
    protocol answer.

    \b
    Example:
      kerple-eval run zoo:alibi mine=hf:models/llama --task sotu --length 512..16k --out runs/first
    """
    given = context.get_parameter_source("protocols") is not ParameterSource.DEFAULT
    with exit_on_interrupt():
        from kerple_eval.cli import run as command  # noqa: PLC0415
        from kerple_eval.evaluation.request import RunRequest  # noqa: PLC0415

    request = RunRequest.of(**options, protocols=protocols if given else None, typed=typed_words())
    sys.exit(command.run(request, dry_run=dry_run))


@cli.command(short_help="Score seven shipped models, one a scheme; table, figures and page.")
@out("Run directory of the demo.", default="out/demo", show_default=True, required=False)
def demo(out: str) -> None:
    """Score seven shipped models, one a scheme, at 512 to 16,384 tokens: a table, two figures, a page.

    \b
    Example:
      kerple-eval demo
    """
    with exit_on_interrupt():
        from kerple_eval.cli import demo as command  # noqa: PLC0415

    sys.exit(command.run(out))


@cli.command(short_help="Show what a checkpoint is, without scoring it.")
@click.argument("model")
def inspect(model: str) -> None:
    """Show what a checkpoint is, before you spend a GPU hour on it: sizes, scheme, memory, warnings.

    \b
    Example:
      kerple-eval inspect hf:models/llama
    """
    from kerple_eval.cli import inspect as command  # noqa: PLC0415

    for line in command.lines(model):
        click.echo(line)


@cli.command("list", short_help="List the models, tasks, schemes, ... that can be named.")
@click.argument("what", required=False, metavar="[models|tasks|schemes|protocols|formats|reports]")
@click.option(
    "--format", "style", default="text", show_default=True, metavar="FORMAT",
    help="text, or markdown (of schemes).",
)  # fmt: skip
def list_(what: str | None, style: str) -> None:
    """List what can be named on the command line; without an argument, what can be listed.

    \b
    Example:
      kerple-eval list schemes
    """
    from kerple_eval.cli import listing  # noqa: PLC0415

    for line in listing.lines(what, style):
        click.echo(line)


@cli.command(short_help="Train a small decoder with a positional scheme.")
@click.option(
    "--scheme", metavar="SCHEME",
    help="Positional scheme: NAME, NAME:key=value (see kerple-eval list schemes), 'kernel: FORMULA', or a "
    "mix by layer, 'layers: (rope,window=512)*3 (nope)'.",
)  # fmt: skip
@click.option(
    "--from", "start", metavar="MODEL",
    help="Go on from a trained model: its scheme, sizes and tokeniser stay. In place of --scheme.",
)  # fmt: skip
@click.option(
    "--extend", metavar="NAME,...",
    help="Change the scheme of --from first, as in MODEL: yarn,factor=4; linear,factor=4,pose=2048; nope.",
)  # fmt: skip
@click.option("--task", metavar="TASK", help="The task whose training split to learn from.")
@click.option("--text", multiple=True, metavar="FILE", help="A text file of your own. Repeat for more.")
@click.option("--length", type=Tokens(2), required=True, metavar="N", help="Tokens in a training sequence.")
@click.option(
    "--seed", type=at_least(0), default=1, show_default=True, metavar="N",
    help="Seed of the initial weights and of the order of the text.",
)  # fmt: skip
@click.option(
    "--steps", type=at_least(1), default=2000, show_default=True, metavar="N", help="Optimiser steps."
)  # fmt: skip
@out("Folder of the new checkpoint.")
@click.option("--tokenizer", metavar="FILE", help="A tokenizer.json; bytes unless given, or those of --from.")
@click.option("--layers", type=at_least(1), default=4, show_default=True, metavar="N", help="Layers.")
@click.option("--width", type=at_least(1), default=128, show_default=True, metavar="N", help="Hidden size.")
@click.option(
    "--heads", type=at_least(1), default=4, show_default=True, metavar="N", help="Attention heads."
)  # fmt: skip
@click.option("--tie-embeddings", is_flag=True, help="Use one matrix as embedding and as head.")
@click.option(
    "--batch", type=at_least(1), default=8, show_default=True, metavar="N", help="Sequences in a step."
)  # fmt: skip
@click.option(
    "--lr", type=FiniteNumber(min=0, min_open=True), default=2e-3, show_default=True, metavar="X",
    help="Highest learning rate.",
)  # fmt: skip
@click.option(
    "--warmup", type=at_least(0), default=100, show_default=True, metavar="N",
    help="Steps in which the learning rate rises.",
)  # fmt: skip
@click.option(
    "--weight-decay", type=FiniteNumber(min=0), default=0.1, show_default=True, metavar="X",
    help="Weight decay of AdamW.",
)  # fmt: skip
@click.option(
    "--clip", type=FiniteNumber(min=0, min_open=True), default=1.0, show_default=True, metavar="X",
    help="Largest norm of the gradient.",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True,
    help="Precision of training; auto is bfloat16 where the device multiplies it natively.",
)  # fmt: skip
@click.option(
    "--store", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
    help="Precision of the stored weights.",
)  # fmt: skip
@click.option(
    "--ngram", type=click.IntRange(0, 6), metavar="N",
    help="Compare with an n-gram model of this order (0 to 6) in the checkpoint's README.",
)  # fmt: skip
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where to train; auto is CUDA where there is a card.",
)  # fmt: skip
@click.option(
    "--threads", type=at_least(1), metavar="N", help="CPU threads; torch's own choice unless given."
)
@click.option(
    "--watch", metavar="LENGTHS",
    help="Score the held-out text at these lengths (512,1024 or 512..4k) while it trains, into the run "
    "PATH-watch.",
)  # fmt: skip
@click.option(
    "--watch-every", type=at_least(1), metavar="N",
    help="Steps between two scorings of --watch; a twentieth of all unless given.",
)  # fmt: skip
@click.option(
    "--log-to", metavar="TRACKER",
    help="With --watch: log the scores to tensorboard (files in PATH-watch), wandb, mlflow or trackio too.",
)  # fmt: skip
def train(**options: Any) -> None:
    """Train a small decoder; after a kill or Ctrl-C the same command goes on.

    With --from a trained model is trained further: --from zoo:rope --extend yarn,factor=4 --length 2048.

    \b
    Example:
      kerple-eval train --scheme kerple-log --task sotu --length 512 --out models/kerple-log
    """
    source = click.get_current_context().get_parameter_source
    sizes = ("layers", "width", "heads", "tie_embeddings")
    options |= {name: None for name in sizes if source(name) is ParameterSource.DEFAULT}
    with exit_on_interrupt():
        from kerple_eval.cli import train as command  # noqa: PLC0415

    command.run(**options)


@cli.command(short_help="Write any checkpoint in the native format.")
@click.argument("source", metavar="MODEL")
@click.argument("destination", metavar="DIR")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Precision of the written weights; the narrowest that keeps each one exactly unless given.",
)  # fmt: skip
def convert(source: str, destination: str, dtype: str | None) -> None:
    """Write the checkpoint MODEL into the new folder DIR in the native format.

    \b
    Example:
      kerple-eval convert neox:checkpoints/kerple models/kerple
    """
    from kerple_eval.cli import convert as command  # noqa: PLC0415

    for line in command.run(source, destination, dtype):
        click.echo(line)


@cli.command(short_help="Join the runs of several machines into one.")
@folders
@out("New run directory.")
@click.option(
    "--within", type=FiniteNumber(min=0), default=0.0, show_default=True, metavar="NATS",
    help="Largest difference between the losses of a cell that several DIR hold; the first cell is kept.",
)  # fmt: skip
def merge(folders: tuple[str, ...], out: str, within: float) -> None:
    """Join the runs of several machines into one: runs of other models, lengths, protocols or tasks.

    What the runs have in common must be equal; a cell that several of them hold must agree.

    \b
    Example:
      kerple-eval merge runs/node1 runs/node2 --out runs/all
    """
    from kerple_eval.records.merging import merge as join  # noqa: PLC0415

    click.echo(join(folders, Path(out), within=within))


for command in reading.COMMANDS:
    cli.add_command(command)


def main() -> None:
    cli(prog_name="kerple-eval")
