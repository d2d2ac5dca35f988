"""The ``kerple-eval`` command: thin click commands over the package.

Heavy imports (torch, pandas, matplotlib) happen inside commands, so that listing and reporting stay
quick. What the user has wrong becomes one line, see ``mistakes.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kerple_eval.cli.errors import Group, Number, filled, is_terminal, typed_words
from kerple_eval.support.interrupts import leaving_at_once
from kerple_eval.support.registry import unknown
from kerple_eval.support.version import VERSION


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="kerple-eval")
@click.option("--traceback", is_flag=True, help="Before an error's line, print where in the code it arose.")
def cli(traceback: bool) -> None:
    """How well language models extrapolate to lengths they were not trained on."""


@cli.command()
@click.option("--scheme", required=True, help="Positional scheme, NAME, NAME:key=value or 'kernel: FORMULA'.")
@click.option("--task", help="Task whose training split to learn from.")
@click.option("--text", multiple=True, help="Text file of your own (repeat for more).")
@click.option("--length", type=click.IntRange(min=2), required=True, help="Tokens a sequence.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--out", required=True, callback=filled, help="Folder of the new checkpoint.")
@click.option("--tokenizer", help="A tokenizer.json; bytes unless given.")
@click.option("--layers", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--width", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--heads", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--tie-embeddings", is_flag=True, help="One matrix for embedding and head.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--lr", type=Number(min=0, min_open=True), default=2e-3, show_default=True)
@click.option("--warmup", type=click.IntRange(min=0), default=100, show_default=True)
@click.option("--weight-decay", type=Number(min=0), default=0.1, show_default=True)
@click.option("--clip", type=Number(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto")
@click.option(
    "--store", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32",
    help="dtype of the stored weights.",
)  # fmt: skip
@click.option("--ngram", type=click.IntRange(0, 6), help="Put an n-gram of this order in the card.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all unless given.")
def train(**options: Any) -> None:
    """Train the native decoder; start the same command again to go on after a kill."""
    with leaving_at_once():
        from kerple_eval.cli import train as command  # noqa: PLC0415

    command.run(**options)


@cli.command()
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option("--task", "tasks", multiple=True, help="Task name or task file (repeat for more).")
@click.option("--text", multiple=True, help="Text file of your own, a document a file or .jsonl line.")
@click.option(
    "--tokens", multiple=True,
    help='Token ids, used as given: JSON lines {"tokens": [...]}, or a memory-mapped data set of GPT-NeoX '
    "or Megatron-LM, PREFIX.idx beside PREFIX.bin.",
)  # fmt: skip
@click.option(
    "--protocol", "protocols", multiple=True, default=("full-context",), show_default=True,
    help="NAME:key=value, with @N after it for lengths up to N only (repeat for more).",
)  # fmt: skip
@click.option(
    "--length", "lengths", multiple=True, default=("512,1024,2048,4096,8192,16384",), show_default=True,
    help="Window lengths in tokens: 512,1024 or 512..16k, which doubles (repeat for more).",
)  # fmt: skip
@click.option("--out", required=True, callback=filled, help="Run directory; the same command goes on in it.")
@click.option("--documents", type=click.IntRange(min=1), help="How many documents.")
@click.option("--keep-short", is_flag=True, help="Also documents shorter than the longest length.")
@click.option("--max-tokens", type=click.IntRange(min=2), help="Cut each document after so many.")
@click.option("--seed", type=click.IntRange(min=0), help="Draws the documents; the task's own if absent.")
@click.option(
    "--bos", type=click.Choice(["never", "document", "window", "tokenizer"]),
    help="First-token marker: none, at the start of each document, of each window (one of its L), or what "
    "the model's tokeniser does; the task's own rule if absent, tokenizer for --text.",
)  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]), default="float32",
    show_default=True,
)  # fmt: skip
@click.option(
    "--attention", type=click.Choice(["auto", "flex", "sdpa", "eager"]), default="auto", show_default=True,
    help="How attention is computed; a backend chosen by name is used or refused.",
)  # fmt: skip
@click.option(
    "--precision",
    metavar="P%",
    help="Score 10 documents, 20, 40, ... until every perplexity is known within so much (0.5%), with 95 % "
    "certainty; --documents is then the most.",
)
@click.option("--against", metavar="MODEL", help="With --precision: each perplexity's ratio to this model's.")
@click.option("--retry", is_flag=True, help="Try again also cells in which the process was killed.")
@click.option(
    "--dry-run", is_flag=True, help="Say what it will take (windows, work, memory, time), and stop."
)
@click.pass_context
def run(context: click.Context, /, protocols: tuple[str, ...], dry_run: bool, **options: Any) -> None:
    """Score models at every length; ends with the table.

    MODEL is zoo:NAME, native:DIR or a directory, optionally LABEL= before it. A finished cell is
    never computed twice: after a kill or Ctrl-C the same command goes on. Tasks that are made (passkey,
    needle, copy, associative-recall) are scored by protocol answer.
    """
    given = context.get_parameter_source("protocols") is not ParameterSource.DEFAULT
    with leaving_at_once():
        from kerple_eval.cli import run as command  # noqa: PLC0415
        from kerple_eval.evaluation.request import RunRequest  # noqa: PLC0415

    request = RunRequest.of(**options, protocols=protocols if given else None, typed=typed_words())
    sys.exit(command.run(request, dry_run=dry_run))


@cli.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@click.option("--format", "style", default="text", show_default=True, help="text, markdown, latex or csv.")
@click.option("--over-seeds", is_flag=True, help="One row a scheme: mean ± std over its seeds, daggers.")
@click.option("--reference", help="Scheme that daggers are against; kerple-log where it is there.")
@click.option("--against", help="paper[:table=T,dataset=NAME]: the KERPLE paper's own rows beside.")
@click.option("--down", default="models", show_default=True, help="What goes down: models or lengths.")
def table(folders: tuple[str, ...], style: str, **options: Any) -> None:
    """Print the tables of run directories."""
    from kerple_eval.reports.tables.table import make  # noqa: PLC0415

    color = style == "text" and is_terminal()
    click.echo(make(folders, style, color=color, **options), nl=False)


STATISTICS = (
    click.option("--task", help="This task only."),
    click.option("--protocol", help="This protocol only, as the table spells it."),
    click.option(
        "--format", "style", default="text", show_default=True, help="text, markdown, latex or csv."
    ),
    click.option(
        "--level", type=Number(0, 1, min_open=True, max_open=True), default=0.95,
        show_default=True, help="Level of the intervals.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True,
        help="Draws the bootstrap's documents and the permutation's signs.",
    ),
)  # fmt: skip


def statistics(command: Any) -> Any:
    for option in reversed(STATISTICS):
        command = option(command)
    return command


@cli.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@click.option("--length", help="Two lengths, as in 512,4096; every two neighbours unless given.")
@click.option("--format", "style", default="text", show_default=True, help="text, markdown, latex or csv.")
def explain(folders: tuple[str, ...], length: str | None, style: str) -> None:
    """Why mean loss changed with length: fewer cold starts (dilution) or more context.

    Loss at a context of the shorter length is taken from a sliding-window cell, in any of DIR.
    """
    from kerple_eval.reports.tables.explain import make, parse_pair  # noqa: PLC0415

    click.echo(make(folders, style, parse_pair(length)), nl=False)


@cli.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@click.option("--format", "style", default="text", show_default=True, help="text, markdown, latex or csv.")
def answers(folders: tuple[str, ...], style: str) -> None:
    """Exact match and loss of passkey, needle, copy and associative-recall, by length and depth."""
    from kerple_eval.reports.tables.answers import make  # noqa: PLC0415

    click.echo(make(folders, style), nl=False)


@cli.command("longppl")
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@click.option("--reference", required=True, metavar="MODEL", help="Its losses choose the key tokens.")
@click.option(
    "--alpha", type=Number(), default=2.0, show_default=True, help="Least gain of a key token, nats."
)
@click.option("--beta", type=Number(), default=-2.0, show_default=True, help="Its loss is below minus this.")
@click.option("--short", type=click.IntRange(min=1), help="The short length; the reference's shortest.")
@click.option("--format", "style", default="text", show_default=True, help="text, markdown, latex or csv.")
def longppl_(folders: tuple[str, ...], reference: str, **options: Any) -> None:
    """LongPPL: perplexity on the tokens that need long context, at every length.

    Key tokens are those whose loss falls by more than alpha between the reference's short and longest
    length, and ends below -beta.
    """
    from kerple_eval.reports.tables.longppl import make  # noqa: PLC0415

    click.echo(make(folders, reference, **options), nl=False)


@cli.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@click.option("--against", required=True, metavar="MODEL", help="The reference: a model, or several seeds.")
@statistics
def compare(folders: tuple[str, ...], against: str, **options: Any) -> None:
    """Compare schemes with one of them on the same targets: is the difference real?

    Models that differ in the training seed alone, and in label by a number at its end, are one scheme.
    """
    from kerple_eval.reports.tables.compare import make  # noqa: PLC0415

    click.echo(make(folders, against, **options), nl=False)


@cli.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@statistics
def intervals(folders: tuple[str, ...], **options: Any) -> None:
    """How sure each number is: intervals over documents, spread over seeds, and both pooled."""
    from kerple_eval.reports.tables.intervals import make  # noqa: PLC0415

    click.echo(make(folders, **options), nl=False)


@cli.command()
@click.argument("sources", nargs=-1, required=True, metavar="DIR...|MODEL...")
@click.option(
    "--kind", default="curve", show_default=True,
    help="curve, position, ratio, scatter or depth, of run directories; kernels, effective-length or matrix, "
    "of MODELs.",
)  # fmt: skip
@click.option("--out", required=True, callback=filled, help="Figure to write: .png, .pdf or .svg.")
@click.option("--against", metavar="MODEL", help="Of ratio and scatter: the one that others are set against.")
@click.option("--task", help="Of run directories: this task only.")
@click.option("--protocol", help="Of run directories: this protocol only, as the table spells it.")
@click.option("--over-seeds", is_flag=True, help="Of curve: one curve a scheme, mean ± std over its seeds.")
@click.option("--value", help="Of position: nll or ppl.")
@click.option(
    "--length", type=int,
    help="Of position and scatter: this length, in place of the longest. Of MODELs: distances below it, or "
    "positions of a matrix.",
)  # fmt: skip
@click.option("--head", type=click.IntRange(min=0), help="Of MODELs: this head alone (from 0).")
@click.option("--layer", type=click.IntRange(min=0), help="Of MODELs whose layers differ: which (from 0).")
def plot(sources: tuple[str, ...], kind: str, out: str, **options: Any) -> None:
    """Draw a figure from run directories, or of the kernels that models have learned."""
    from kerple_eval.cli import plot as command  # noqa: PLC0415

    command.run(sources, kind, Path(out), **options)
    click.echo(out)


@cli.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@click.option("--out", required=True, callback=filled, help="New run directory.")
@click.option(
    "--within", type=Number(min=0), default=0.0, show_default=True,
    help="Cells that two of DIR hold may differ by so much a loss (nats); the first one's stays.",
)  # fmt: skip
def merge(folders: tuple[str, ...], out: str, within: float) -> None:
    """Join runs of several machines into one: other models, lengths, protocols or tasks, or the same.

    What the runs share must be the same in all; a cell that two of them hold must agree.
    """
    from kerple_eval.records.merging import merge as join  # noqa: PLC0415

    click.echo(join(folders, Path(out), within=within))


@cli.command()
@click.argument("folder", metavar="DIR")
@click.option("--format", "style", default="lm-eval", show_default=True, help="lm-eval.")
@click.option(
    "--out", required=True, callback=filled, help="FILE.json of one model, or a folder with one for each."
)
@click.option("--model", help="This model only.")
def export(folder: str, style: str, out: str, model: str | None) -> None:
    """Write results in lm-evaluation-harness' JSON layout; kerple_eval.read_lm_eval reads it into pandas."""
    from kerple_eval.reports.lm_eval import export as write  # noqa: PLC0415

    for path in write(folder, Path(out), style=style, model=model):
        click.echo(path)


@cli.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@click.option(
    "--out",
    callback=filled,
    help="Page to write, .html or .md; report.html in the first directory unless given.",
)
@click.option("--format", "style", help="html (the default) or markdown, with its figures beside it.")
@click.option("--against", metavar="MODEL", help="Set others against this one; kerple-log where it is there.")
def report(folders: tuple[str, ...], out: str | None, style: str | None, against: str | None) -> None:
    """Write one page that needs nothing else: tables, figures, provenance of every number."""
    from kerple_eval.reports.page import page  # noqa: PLC0415

    for path in page.make(folders, Path(out) if out else None, style, against=against):
        click.echo(path)


@cli.command()
@click.argument("model")
def inspect(model: str) -> None:
    """What a checkpoint is, before spending a GPU hour on it."""
    from kerple_eval.cli import inspect as command  # noqa: PLC0415

    for line in command.lines(model):
        click.echo(line)


@cli.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
    help="dtype of the written weights; the narrowest that keeps every one exactly unless given.",
)  # fmt: skip
def convert(source: str, destination: str, dtype: str | None) -> None:
    """Write the checkpoint SRC (any MODEL) into the new folder DST in the native format."""
    from kerple_eval.cli import convert as command  # noqa: PLC0415

    for line in command.run(source, destination, dtype):
        click.echo(line)


KINDS = ("models", "tasks", "schemes", "protocols", "formats", "reports")


@cli.command("list")
@click.argument("what", metavar="|".join(KINDS))
@click.option("--format", "style", default="text", show_default=True, help="text or (schemes) markdown.")
def list_(what: str, style: str) -> None:
    """What can be named on the command line."""
    from kerple_eval.cli import listing  # noqa: PLC0415

    if what not in KINDS:
        raise unknown("list", what, KINDS)
    for line in listing.lines(what, style):
        click.echo(line)


@cli.command()
@click.option(
    "--out", default="out/demo", show_default=True, callback=filled, help="Run directory of the demo."
)
def demo(out: str) -> None:
    """The main job on what the package ships: seven schemes, 512 to 16,384, table and figures."""
    with leaving_at_once():
        from kerple_eval.cli import demo as command  # noqa: PLC0415

    sys.exit(command.run(out))


def main() -> None:
    cli(prog_name="kerple-eval")
