"""The commands that read finished runs: tables, figures, pages and what else is computed from losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kerple_eval.cli.errors import is_terminal
from kerple_eval.cli.parameters import (
    Command,
    FiniteNumber,
    Tokens,
    at_least,
    folders,
    only_lengths,
    only_models,
    out,
    statistics,
    table_format,
)
from kerple_eval.types import UserError


@click.command(cls=Command, short_help="Print the tables of runs.")
@folders
@table_format
@click.option(
    "--over-seeds", is_flag=True,
    help="A row a scheme: mean ± standard deviation over its seeds, a dagger where the reference differs.",
)  # fmt: skip
@click.option(
    "--reference", metavar="SCHEME",
    help="With --over-seeds: the scheme that daggers compare with; kerple-log unless given.",
)  # fmt: skip
@click.option(
    "--against", metavar="PAPER",
    help="paper[:table=T,dataset=NAME]: show the KERPLE paper's own rows beside.",
)  # fmt: skip
@click.option(
    "--down", default="models", show_default=True, metavar="WHAT",
    help="What the rows are: models or lengths; with --divergence models or contexts.",
)  # fmt: skip
@click.option(
    "--reach", is_flag=True,
    help="Two more columns: how far each model holds and what context it uses (see kerple-eval reach).",
)  # fmt: skip
@only_models
@click.option(
    "--divergence", is_flag=True,
    help="How far predictions are from those of the reference that run --divergence-from named: mean, "
    "percentiles, same top-1. With --down contexts: a row a doubling of context.",
)  # fmt: skip
@click.pass_context
def table(context: click.Context, /, folders: tuple[str, ...], style: str, **options: Any) -> None:
    """Print the tables of runs: perplexity and bits per byte by model and length.

    \b
    Example:
      kerple-eval table runs/first --format latex
    """
    if options.pop("divergence"):
        from kerple_eval.reports.tables.divergence import make as divergences  # noqa: PLC0415

        for option in context.command.params:
            given = context.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT
            if given and option.name in options and option.name != "down":
                raise UserError(f"{option.opts[0]} has no meaning with --divergence; leave it out")
        click.echo(divergences(folders, style, down=options["down"]), nl=False)
        return
    from kerple_eval.reports.tables.table import make  # noqa: PLC0415

    color = style == "text" and is_terminal()
    click.echo(make(folders, style, color=color, **options), nl=False)


@click.command(cls=Command, short_help="Write one page with tables, figures and provenance.")
@folders
@out(
    "Page to write, .html or .md; report.html in the first DIR unless given.", required=False,
)  # fmt: skip
@click.option(
    "--format", "style", metavar="FORMAT",
    help="html (unless the page's name ends in .md) or markdown, with its figures beside it.",
)  # fmt: skip
@click.option(
    "--against", metavar="MODEL", help="Compare the others with this model; kerple-log unless given."
)  # fmt: skip
@click.option(
    "--gain", is_flag=True, help="Also where the gain comes from, with text; see kerple-eval explain --gain."
)  # fmt: skip
def report(folders: tuple[str, ...], out: str | None, style: str | None, **options: Any) -> None:
    """Write one page that needs no other file: tables, figures, and where every number came from.

    \b
    Example:
      kerple-eval report runs/first
    """
    from kerple_eval.reports.page import page  # noqa: PLC0415

    for path in page.make(folders, Path(out) if out else None, style, **options):
        click.echo(path)


@click.command(cls=Command, short_help="Draw a figure of runs or of models.")
@click.argument("sources", nargs=-1, required=True, metavar="DIR...|MODEL...")
@click.option(
    "--kind", default="curve", show_default=True, metavar="KIND",
    help="Of runs: curve, position, ratio, scatter, depth, divergence or training. Of models: kernels, "
    "kernel-reach or matrix.",
)  # fmt: skip
@out("Figure to write: .png, .pdf or .svg; KIND.png in DIR where there is exactly one.", required=False)
@click.option(
    "--against", metavar="MODEL", help="ratio, scatter: the model that the others are compared with."
)  # fmt: skip
@click.option("--task", metavar="NAME", help="Of runs: only this task.")
@click.option("--protocol", metavar="NAME", help="Of runs: only this protocol, written as in the table.")
@click.option(
    "--over-seeds", is_flag=True,
    help="curve: one line per scheme, mean ± standard deviation over its seeds.",
)  # fmt: skip
@only_models
@click.option("--value", metavar="VALUE", help="position: nll (nats per target) or ppl (perplexity).")
@click.option(
    "--length", type=Tokens(), metavar="N",
    help="position, scatter: this length instead of the longest. Of models: distances below N, or positions "
    "of a matrix.",
)  # fmt: skip
@click.option("--head", type=at_least(0), metavar="N", help="Of models: only this head, counted from 0.")
@click.option(
    "--layer", type=at_least(0), metavar="N",
    help="Of models whose layers differ: this layer, counted from 0.",
)  # fmt: skip
def plot(sources: tuple[str, ...], kind: str, out: str | None, **options: Any) -> None:
    """Draw a figure of runs, or of the positional kernels that models have learned.

    \b
    Example:
      kerple-eval plot runs/first --kind curve --out curve.png
    """
    from kerple_eval.cli import plot as command  # noqa: PLC0415

    click.echo(command.run(sources, kind, Path(out) if out else None, **options))


@click.command(cls=Command, short_help="Is the difference between schemes real?")
@folders
@click.option(
    "--against", required=True, metavar="MODEL",
    help="The reference: one model, or a scheme of several seeds.",
)  # fmt: skip
@only_models
@only_lengths
@statistics
def compare(folders: tuple[str, ...], against: str, **options: Any) -> None:
    """Compare schemes with one of them on the same targets: is the difference real?

    Models that differ only in the training seed, and in a number at the end of the label, are one scheme.
    The more comparisons, the stronger each has to be: --model and --length, settled before a look at the
    results, keep them few.

    \b
    Example:
      kerple-eval compare runs/first --against alibi
    """
    from kerple_eval.reports.tables.compare import make  # noqa: PLC0415

    click.echo(make(folders, against, **options), nl=False)


@click.command(cls=Command, short_help="How certain is each number?")
@folders
@only_models
@only_lengths
@statistics
def intervals(folders: tuple[str, ...], **options: Any) -> None:
    """How certain each number is: intervals over documents, spread over seeds, and both together.

    \b
    Example:
      kerple-eval intervals runs/first
    """
    from kerple_eval.reports.tables.intervals import make  # noqa: PLC0415

    click.echo(make(folders, **options), nl=False)


@click.command(cls=Command, short_help="How far does each model hold, and what context does it use?")
@folders
@click.option("--task", metavar="NAME", help="Only this task.")
@click.option("--protocol", metavar="NAME", help="Only this protocol, written as in the table.")
@only_models
@click.option(
    "--margin", metavar="P%", default="1%", show_default=True,
    help="A length holds where perplexity is within P% of the best shorter length's.",
)  # fmt: skip
@table_format
def reach(folders: tuple[str, ...], **options: Any) -> None:
    """How far each model holds (its perplexity stays as low as at shorter lengths), and what context it uses.

    Both are tests over documents on the same targets, so that "not enough documents" is an answer too. Of
    tasks with answers (passkey, ...): up to which length exact match is above RULER's 85.6 %.

    \b
    Example:
      kerple-eval reach runs/first
    """
    from kerple_eval.reports.tables.reach import make  # noqa: PLC0415

    click.echo(make(folders, **options), nl=False)


@click.command(cls=Command, short_help="Why do two numbers of one model differ?")
@folders
@click.option(
    "--length", metavar="LENGTHS",
    help="Two lengths, as in 512,4096; each pair of neighbouring lengths unless given. With --between: one "
    "for both protocols, or one for each. With --gain: the shortest and the longest unless given.",
)  # fmt: skip
@click.option(
    "--between", multiple=True, metavar="PROTOCOL",
    help="Two protocols, written as in the table: why their numbers differ.",
)  # fmt: skip
@click.option(
    "--gain", is_flag=True,
    help="Where the change comes from, by what each target is and where it was seen before. Reads the text "
    "again.",
)  # fmt: skip
@click.option("--model", metavar="MODEL", help="With --between or --gain: only this model.")
@click.option("--protocol", metavar="NAME", help="With --gain: only this protocol, written as in the table.")
@click.option(
    "--ngram", type=at_least(0), metavar="N",
    help="With --gain: a target was seen before where it follows the same N tokens; 3 unless given.",
)  # fmt: skip
@table_format
def explain(
    folders: tuple[str, ...],
    length: str | None,
    between: tuple[str, ...],
    gain: bool,
    style: str,
    **options: Any,
) -> None:
    """Why the mean loss changed with length: fewer targets with little context (dilution), or more context.

    The loss at a context of the shorter length comes from a sliding-window cell of any DIR. With --between
    twice: why two protocols give one model two numbers, as effects that add up to the difference. With
    --gain: which targets the change from the shortest to the longest length comes from, and the spans of text
    that gained and lost most.

    \b
    Example:
      kerple-eval explain runs/first --length 512,4096
    """
    from kerple_eval.reports.tables import between as protocols  # noqa: PLC0415
    from kerple_eval.reports.tables import gain as sources  # noqa: PLC0415
    from kerple_eval.reports.tables.explain import make, parse_pair  # noqa: PLC0415

    given = {name: value for name, value in options.items() if value is not None}
    allowed = {"model", "protocol", "ngram"} if gain else {"model"} if between else set()
    if gain and between:
        raise UserError("explain --gain and --between are two questions: ask one at a time")
    if wrong := given.keys() - allowed:
        raise UserError(f"explain --{min(wrong)} has no meaning here: it goes with --gain")
    if between:
        shown = protocols.make(folders, style, between=between, length=length, **given)
    elif gain:
        shown = sources.make(folders, style, lengths=parse_pair(length), **given)
    else:
        shown = make(folders, style, parse_pair(length))
    click.echo(shown, nl=False)


@click.command(cls=Command, short_help="Show retrieval: passkey, needle, copy, recall.")
@folders
@table_format
def answers(folders: tuple[str, ...], style: str) -> None:
    """Show exact match and loss of passkey, needle, copy and associative-recall by length and depth.

    \b
    Example:
      kerple-eval answers runs/passkey
    """
    from kerple_eval.reports.tables.answers import make  # noqa: PLC0415

    click.echo(make(folders, style), nl=False)


@click.command("longppl", cls=Command, short_help="Perplexity on the tokens that need a long context.")
@folders
@click.option("--reference", metavar="MODEL", help="The model whose losses choose the key tokens.")
@click.option(
    "--key-tokens", metavar="FILE",
    help="In place of --reference: key tokens that --write-key-tokens kept, of the same text.",
)  # fmt: skip
@click.option(
    "--write-key-tokens", metavar="FILE",
    help="Keep the key tokens, as characters of the text, for models of any tokeniser.",
)  # fmt: skip
@click.option(
    "--alpha", type=FiniteNumber(), metavar="NATS",
    help="Key tokens gain more than this from the longer context; 2 unless given.",
)  # fmt: skip
@click.option(
    "--beta", type=FiniteNumber(), metavar="NATS",
    help="Key tokens have a log-probability above this in the longer context; -2 unless given.",
)  # fmt: skip
@click.option(
    "--short", type=Tokens(), metavar="N", help="The short length; the reference's shortest unless given."
)  # fmt: skip
@table_format
def longppl_(folders: tuple[str, ...], **options: Any) -> None:
    """LongPPL: perplexity on the tokens that need a long context, at every length.

    Key tokens are those whose loss falls by more than alpha from the reference's short length to its longest
    one, and is then below -beta. For models of another tokeniser they are mapped by characters of the text,
    which is read again.

    \b
    Example:
      kerple-eval longppl runs/first --reference alibi
    """
    from kerple_eval.reports.tables.longppl import make  # noqa: PLC0415

    click.echo(make(folders, **options), nl=False)


@click.command(cls=Command, short_help="Write results for other programs: lm-eval, TensorBoard, ...")
@click.argument("folder", metavar="DIR")
@click.option(
    "--format", "style", default="lm-eval", show_default=True, metavar="FORMAT",
    help="lm-eval, hub (evaluation results of a model repository), tensorboard, wandb, mlflow or trackio.",
)  # fmt: skip
@out(
    "lm-eval, hub: a file of one model, or a folder with a folder for each model; tensorboard: a folder. "
    "The others go where their own settings say.", required=False,
)  # fmt: skip
@click.option("--model", metavar="MODEL", help="Only this model.")
def export(folder: str, out: str | None, **options: Any) -> None:
    """Write results in the formats of other programs, and to experiment trackers through their packages.

    From Python, kerple_eval.read_lm_eval reads files of lm-eval into pandas.

    \b
    Example:
      kerple-eval export runs/first --out exported
    """
    from kerple_eval.reports.exports import export as write  # noqa: PLC0415

    for where in write(folder, None if out is None else Path(out), **options):
        click.echo(where)


COMMANDS = (table, report, plot, compare, intervals, reach, explain, answers, longppl_, export)
