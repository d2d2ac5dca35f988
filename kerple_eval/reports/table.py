"""Paper-style tables: models down, lengths across, best in bold, the trained length marked."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from kerple_eval.catalogue import unknown
from kerple_eval.reports.grid import VALUES, Grid, read_grids

FORMATS = ("text", "markdown", "latex", "csv")


def number(value: float | None) -> str:
    """Four significant digits or so: 3.214, 23.91, 185.2, 14039."""
    if value is None:
        return ""
    digits = 3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0
    return f"{value:.{digits}f}"


def render(folders: Sequence[str | Path], style: str = "text", *, color: bool = False) -> str:
    """The tables of one or several runs in one of ``FORMATS``."""
    if style not in FORMATS:
        raise unknown("table format", style, FORMATS)
    grids = read_grids(folders)
    if style == "csv":
        return _csv(grids)
    draw = {"text": _text, "markdown": _markdown, "latex": _latex}[style]
    blocks = []
    for grid in grids:
        values = grid.values()
        if style == "text":
            blocks.append("\n".join(_text(grid, value, color=color) for value in values))
        else:
            blocks.append("\n".join(draw(grid, value) for value in values))
        blocks[-1] += _notes(grid, style)
    return "\n".join(blocks)


def cells(grid: Grid, value: str) -> list[tuple[str, list[tuple[str, bool]]]]:
    """(model, [(text, best) a length]); ``failed`` and ``-`` stand for cells without a number."""
    best = {length: grid.best(length, value) for length in grid.lengths}
    rows = []
    for model in grid.models:
        row = []
        for length in grid.lengths:
            entry = grid.entries.get((model, length))
            shown = "-" if entry is None else number(entry.row[value]) if entry.ok else "failed"
            row.append((shown, model in best[length]))
        rows.append((model, row))
    return rows


def headings(grid: Grid) -> list[str]:
    trained = grid.shared_train_length
    return [f"{length}*" if length == trained else str(length) for length in grid.lengths]


def title(grid: Grid, value: str) -> str:
    trained = grid.shared_train_length
    mark = ""
    if trained is not None:
        mark = f"; * trained length {trained}" if trained in grid.lengths else f"; trained at {trained}"
    return f"{grid.task}, {grid.protocol}: {VALUES[value]} against length{mark}"


def _trained(grid: Grid) -> list[str] | None:
    """A column of trained lengths where they differ between models."""
    lengths = [grid.trained(model) for model in grid.models]
    return None if len(set(lengths)) == 1 else ["?" if n is None else str(n) for n in lengths]


def _text(grid: Grid, value: str, *, color: bool = False) -> str:
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD)
    trained = _trained(grid)
    table.add_column("model", no_wrap=True)
    if trained:
        table.add_column("trained", justify="right")
    for heading in headings(grid):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, (model, row) in enumerate(cells(grid, value)):
        shown = [Text(text, style="bold" if best else "") for text, best in row]
        table.add_row(Text(model), *([trained[index]] if trained else []), *shown)
    buffer = io.StringIO()
    wide = max(100, 24 + 12 * len(grid.lengths) + max(map(len, grid.models)))
    console = Console(file=buffer, width=wide, force_terminal=color, no_color=not color, highlight=False)
    console.print(Text(title(grid, value), style="bold"))
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _notes(grid: Grid, style: str) -> str:
    lines = grid.notes()
    if style == "latex":
        return "".join(f"% {line}\n" for line in lines)
    prefix = "* " if style == "markdown" else "  "
    return ("\n" if style == "markdown" else "") + "".join(f"{prefix}{line}\n" for line in lines)


def _markdown(grid: Grid, value: str) -> str:
    trained = _trained(grid)
    head = ["model", *(["trained"] if trained else []), *headings(grid)]
    lines = [f"**{title(grid, value).replace('*', chr(92) + '*')}**", ""]
    lines.append("| " + " | ".join(h.replace("*", "\\*") for h in head) + " |")
    lines.append("|---" + "|---:" * (len(head) - 1) + "|")
    for index, (model, row) in enumerate(cells(grid, value)):
        shown = [f"**{text}**" if best else text for text, best in row]
        label = model.replace("|", "\\|")
        lines.append("| " + " | ".join([label, *([trained[index]] if trained else []), *shown]) + " |")
    return "\n".join(lines) + "\n"


def _latex(grid: Grid, value: str) -> str:
    trained = _trained(grid)
    head = ["model", *(["trained"] if trained else []), *headings(grid)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(title(grid, value))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(_escape(h) for h in head) + r" \\",
        r"\midrule",
    ]
    for index, (model, row) in enumerate(cells(grid, value)):
        shown = [rf"\textbf{{{text}}}" if best else text for text, best in row]
        lines.append(" & ".join([_escape(model), *([trained[index]] if trained else []), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _csv(grids: Sequence[Grid]) -> str:
    lengths = sorted({length for grid in grids for length in grid.lengths})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["task", "protocol", "value", "model", "train_length", *lengths])
    for grid in grids:
        for value in grid.values():
            for model in grid.models:
                entries = [grid.entries.get((model, length)) for length in lengths]
                found = [None if e is None or not e.ok else e.row[value] for e in entries]
                numbers = ["" if x is None else repr(x) for x in found]
                trained = grid.trained(model)
                writer.writerow(
                    [grid.task, grid.protocol, value, model, "" if trained is None else trained, *numbers]
                )
    return buffer.getvalue()
