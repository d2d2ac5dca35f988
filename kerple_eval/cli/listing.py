"""``kerple-eval list``: what can be named on the command line. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kerple_eval.data.task import TASKS, read_task
from kerple_eval.models.catalogue import CHECKPOINT_FORMATS
from kerple_eval.models.zoo import read_config, shipped
from kerple_eval.protocols.catalogue import PROTOCOLS
from kerple_eval.reports.catalogue import REPORTS
from kerple_eval.reports.typeset import Table, TableCell, TableRow, markdown_rows
from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

ListingRows = list[tuple[str, ...]]


STYLES = ("text", "markdown")
SCHEME_HEADS = ("scheme", "year", "parameters", "prefix-invariant", "use", "how position enters", "source")


KINDS = {
    "models": "checkpoints that the package ships, by the name after zoo:",
    "tasks": "texts to score, by the name after --task",
    "schemes": "positional schemes, by the name after train --scheme",
    "protocols": "ways to cut documents into windows, by the name after --protocol",
    "formats": "checkpoint formats, by the word before the colon of MODEL",
    "reports": "tables, figures and pages that can be made of runs and models",
}


def lines(what: str | None, style: str = "text") -> list[str]:
    """Aligned lines, the name first; without ``what``, what can be listed.

    ``markdown`` is for schemes: a table with a head.
    """
    if what is None:
        return [f"{kind.ljust(10)}{summary}" for kind, summary in KINDS.items()]
    if what not in KINDS:
        raise unknown("list", what, KINDS)
    if style not in STYLES:
        raise unknown("list format", style, STYLES)
    if style == "markdown":
        if what != "schemes":
            raise UserError(f"list {what} has the format text only; --format markdown is for schemes")
        return _markdown_schemes()
    makers: dict[str, Callable[[], ListingRows]] = {
        "models": _models,
        "tasks": _tasks,
        "schemes": _schemes,
        "protocols": lambda: [(e.name, e.summary) for e in PROTOCOLS.values()],
        "formats": lambda: [(e.name, e.summary) for e in CHECKPOINT_FORMATS.values()],
        "reports": lambda: [(e.name, f"of {e.takes}", e.summary) for e in REPORTS.values()],
    }
    rows = makers[what]()
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def _models() -> ListingRows:
    rows: ListingRows = []
    for name, folder in shipped().items():
        config = read_config(folder)
        model, training = config["model"], config["training"]
        bits = training["held_out"]["bits_per_byte"]
        rows.append(
            (
                f"zoo:{name}",
                model["scheme"],
                f"trained at {model['train_length']}, seed {config['seed']}",
                f"{training['parameters']:,} parameters",
                f"{bits:.4f} bits per byte held out on {training['data']['task']}",
            )
        )
    return rows


def _tasks() -> ListingRows:
    rows: ListingRows = []
    for name, entry in TASKS.items():
        task = read_task(Path(entry.target))
        rows.append((name, f"v{task.version}", task.source.kind, task.description))
    return rows


def _markdown_schemes() -> list[str]:
    rows = tuple(
        TableRow(
            (
                TableCell(e.name, code=True),
                *map(TableCell, (str(e.year), e.parameters)),
                TableCell("yes") if e.prefix_invariant else TableCell("no", best=True),
                *map(TableCell, (e.use, e.kind, e.paper)),
            )
        )
        for e in SCHEMES.values()
    )
    return markdown_rows(Table("", SCHEME_HEADS, rows, words=frozenset(range(len(SCHEME_HEADS)))))


def _schemes() -> ListingRows:
    return [
        (
            e.name,
            str(e.year),
            f"parameters {e.parameters}",
            "prefix-invariant" if e.prefix_invariant else "depends on total length",
            e.use,
            e.kind,
            e.paper,
        )
        for e in SCHEMES.values()
    ]
