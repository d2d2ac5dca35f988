"""A table as people read it, set in text, Markdown or LaTeX (booktabs); what it says is decided elsewhere.

Columns are one label, perhaps some facts, and values; rows stand in groups, each with a heading or none.
A rule may follow a row, and a column may be ruled: that is where the trained length is.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kerple_eval.support.registry import unknown

#: A LaTeX table whose rows have more characters is set smaller, so as to fit the width of a page's text
#: (article's 345 pt); beyond some 140 characters, as with the paper's schemes across, no size does.
SIZES = ((104, r"\tiny"), (84, r"\scriptsize"), (60, r"\footnotesize"))
STYLES = ("text", "markdown", "latex")


@dataclass(frozen=True, slots=True)
class Item:
    """One value as it is shown: bold where it is the best, a mark (a dagger) after it."""

    text: str
    best: bool = False
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A row: its label, the group it stands in, and an item a column."""

    label: str
    items: tuple[Item, ...]
    group: str = ""
    ruled: bool = False  # a rule below it
    column: str = ""  # its heading where rows become columns; the label unless given


@dataclass(frozen=True, slots=True)
class Sheet:
    """``corner`` heads the labels; ``ruled`` is the index of the marked column, None for none."""

    title: str
    corner: str
    head: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = field(default=())
    ruled: int | None = None

    def transposed(self) -> Sheet:
        """Rows as columns."""
        head = tuple(line.column or line.label for line in self.lines)
        lines = tuple(
            Line(label, tuple(line.items[i] for line in self.lines), ruled=i == self.ruled)
            for i, label in enumerate(self.head)
        )
        return replace(self, head=head, lines=lines, corner="length", ruled=None)


def typeset(sheet: Sheet, style: str, *, color: bool = False) -> str:
    """The table, then its notes."""
    if style not in STYLES:
        raise unknown("table format", style, STYLES)
    setters: dict[str, Callable[[Sheet], str]] = {
        "text": lambda s: _text(s, color=color),
        "markdown": _markdown,
        "latex": _latex,
    }
    return setters[style](sheet)


def _groups(sheet: Sheet) -> list[tuple[str, list[Line]]]:
    found: list[tuple[str, list[Line]]] = []
    for line in sheet.lines:
        if not found or found[-1][0] != line.group:
            found.append((line.group, []))
        found[-1][1].append(line)
    return found


def _text(sheet: Sheet, *, color: bool) -> str:
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(sheet.corner, no_wrap=True)
    for heading in sheet.head:
        table.add_column(heading, justify="right", no_wrap=True)
    groups = _groups(sheet)
    for group, lines in groups:
        if group:
            table.add_row(Text(group, style="italic"))
        for line in lines:
            shown = [Text(item.text + item.mark, style="bold" if item.best else "") for item in line.items]
            table.add_row(Text(line.label), *shown, end_section=line.ruled)
        table.add_section()
    buffer = io.StringIO()
    longest = max([len(line.label) for line in sheet.lines] + [len(group) for group, _ in groups])
    widths = [
        max([len(head), *(len(line.items[i].text) + 1 for line in sheet.lines)])
        for i, head in enumerate(sheet.head)
    ]
    wide = max(100, 24 + longest + sum(width + 4 for width in widths))
    console = Console(file=buffer, width=wide, force_terminal=color, no_color=not color, highlight=False)
    console.print(Text(sheet.title, style="bold"))
    console.print(table)
    body = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
    return body + "".join(f"  {note}\n" for note in sheet.notes)


def _markdown(sheet: Sheet) -> str:
    def safe(text: str) -> str:
        return text.replace("*", "\\*").replace("|", "\\|")

    lines = [f"**{safe(sheet.title)}**", ""]
    lines.append("| " + " | ".join(safe(h) for h in (sheet.corner, *sheet.head)) + " |")
    lines.append("|---" + "|---:" * len(sheet.head) + "|")
    for group, members in _groups(sheet):
        if group:
            lines.append(f"| *{safe(group)}* |" + " |" * len(sheet.head))
        for line in members:
            shown = [f"**{i.text}**{i.mark}" if i.best else i.text + i.mark for i in line.items]
            lines.append("| " + " | ".join([safe(line.label), *shown]) + " |")
    notes = [f"* {note}" for note in sheet.notes]
    return "\n".join([*lines, "", *notes]) + "\n"


def _latex(sheet: Sheet) -> str:
    caption = sheet.title + "".join(f". {note[0].upper()}{note[1:]}" for note in sheet.notes)
    columns = len(sheet.head) + 1
    size = next((command for width, command in SIZES if _characters(sheet) > width), "")
    mark = "" if sheet.ruled is None else rf"\cmidrule(lr){{{sheet.ruled + 2}-{sheet.ruled + 2}}}"
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        *([rf"{size}\setlength{{\tabcolsep}}{{2pt}}"] if size else []),
        rf"\begin{{tabular}}{{@{{}}l{'r' * len(sheet.head)}@{{}}}}",
        r"\toprule",
        " & ".join(escape(h) for h in (sheet.corner, *sheet.head)) + r" \\",
        r"\midrule" + mark,
    ]
    for index, (group, members) in enumerate(_groups(sheet)):
        if index:
            lines.append(r"\midrule")
        if group:
            lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{escape(group)}}}}} \\")
        for line in members:
            shown = [_latex_item(item) for item in line.items]
            lines.append(" & ".join([escape(line.label), *shown]) + r" \\")
            if line.ruled and line is not sheet.lines[-1]:
                lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _characters(sheet: Sheet) -> int:
    """Width of the widest row as set, about."""
    columns = zip(*([item.text + item.mark for item in line.items] for line in sheet.lines), strict=True)
    widths = [max(map(len, (head, *cells))) for head, cells in zip(sheet.head, columns, strict=True)]
    return max(len(line.label) for line in sheet.lines) + sum(widths) + 2 * len(widths)


def _latex_item(item: Item) -> str:
    text = escape(item.text).replace(r" $\pm$ ", r"\,$\pm$\,")
    return (rf"\textbf{{{text}}}" if item.best else text) + escape(item.mark)


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "†": r"$^\dagger$", "–": "--",
}  # fmt: skip


def escape(text: str) -> str:
    """Text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)
