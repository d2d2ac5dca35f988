"""The one table model, and a setter for each format: terminal, Markdown, LaTeX (booktabs), CSV and HTML.

A report decides what a table holds; a setter decides how its format shows that, and escapes every text
by :mod:`kerple_eval.reports.escapes`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rich.cells import cell_len

from kerple_eval.reports import escapes
from kerple_eval.support.registry import unknown

#: HTML is a fragment, for a page or a notebook.
TABLE_FORMATS = ("text", "markdown", "latex", "csv", "html")
#: A LaTeX table whose rows have more characters is set smaller, so as to fit the width of a page's text
#: (article's 345 pt); beyond some 140 characters, as with the paper's schemes across, no size does.
SIZES = ((104, r"\tiny"), (84, r"\scriptsize"), (60, r"\footnotesize"))
_FEWEST_TO_FILTER = 6  # rows of a page's table
CellValue = str | float | int | None
#: (task, protocol, model, length) -> the anchor on the page of that cell's row, "" for none.
Link = Callable[[str, str, str, int], str]


def no_link(task: str, protocol: str, model: str, length: int) -> str:
    """The :data:`Link` of a table that is no part of a page."""
    return ""


@dataclass(frozen=True, slots=True)
class TableCell:
    """``text`` is what a reader sees; ``value``, where given, is what CSV writes and a page sorts by."""

    text: str
    value: CellValue = None
    best: bool = False  # emphasised
    mark: str = ""  # a dagger after the text
    link: str = ""  # anchor on the page of where the number comes from
    code: bool = False  # a hash, a file name, a command
    missing: bool = False  # no number: an empty field of CSV, sorted last


@dataclass(frozen=True, slots=True)
class TableRow:
    """``cells[0]`` names the row; rows of one ``group`` stand together under it."""

    cells: tuple[TableCell, ...]
    group: str = ""
    anchor: str = ""  # on the page
    rule_below: bool = False
    heading: str = ""  # of its column in a transposed table, unless the row's name is right


@dataclass(frozen=True, slots=True)
class Table:
    """``words`` are the columns that hold words, set flush left; the others hold numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    words: frozenset[int] = frozenset({0})
    ruled_column: int | None = None  # the trained length's, ruled in LaTeX
    spaced: bool = False  # for the terminal: columns further apart, sections by blank lines

    def transposed(self, corner: str) -> Table:
        """Rows as columns; ``corner`` heads the first one."""
        head = (corner, *(row.heading or row.cells[0].text for row in self.rows))
        rows = tuple(
            TableRow(
                (TableCell(label), *(row.cells[i] for row in self.rows)), rule_below=i == self.ruled_column
            )
            for i, label in enumerate(self.head)
            if i
        )
        return replace(self, head=head, rows=rows, words=frozenset({0}), ruled_column=None)

    def without_empty_columns(self) -> Table:
        """Without the columns in which every cell's text is empty."""
        kept = [i for i in range(len(self.head)) if any(row.cells[i].text for row in self.rows)]
        return replace(
            self,
            head=tuple(self.head[i] for i in kept),
            rows=tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in self.rows),
            words=frozenset(new for new, old in enumerate(kept) if old in self.words),
        )

    def groups(self) -> list[tuple[str, list[TableRow]]]:
        """Neighbouring rows of one group."""
        return [(name, list(rows)) for name, rows in groupby(self.rows, key=lambda row: row.group)]


def records_table(columns: Sequence[str], records: Sequence[Mapping[str, CellValue]]) -> Table:
    """Records at full precision, a row each, for CSV; None is an empty field."""
    rows = (
        TableRow(
            tuple(TableCell("", value, missing=value is None) for value in map(record.__getitem__, columns))
        )
        for record in records
    )
    return Table("", tuple(columns), tuple(rows))


def check_format(style: str) -> None:
    """Raises `UserError` where ``style`` is no format of a table."""
    if style not in TABLE_FORMATS:
        raise unknown("table format", style, TABLE_FORMATS)


def typeset(table: Table, style: str, *, color: bool = False) -> str:
    """The table, then its notes; ``color`` is for a terminal that shows bold and italics."""
    setters: dict[str, Callable[[Table], str]] = {
        "text": lambda table: _text(table, color=color),
        "markdown": lambda table: "\n".join(markdown_lines(table)) + "\n",
        "latex": _latex,
        "csv": _csv,
        "html": _html,
    }
    if style not in setters:
        raise unknown("table format", style, setters)
    return setters[style](table)


def _text(table: Table, *, color: bool) -> str:
    gap, rule = ("   ", "─") if table.spaced else ("  ", "-")
    head = [escapes.printable(text) for text in table.head]
    shown = {id(row): [escapes.printable(cell.text + cell.mark) for cell in row.cells] for row in table.rows}
    columns = zip(head, *shown.values(), strict=True)
    widths = [max(map(cell_len, column)) for column in columns]
    groups = [(escapes.printable(name), rows) for name, rows in table.groups()]
    widths[0] = max([widths[0], *(cell_len(name) for name, _ in groups)])

    def styled(text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if color and text else text

    def line(texts: Sequence[str], bold: Sequence[bool]) -> str:
        padded = []
        for i, (text, width) in enumerate(zip(texts, widths, strict=True)):
            space = " " * (width - cell_len(text))
            word = styled(text, 1) if bold[i] else text
            padded.append(word + space if i in table.words else space + word)
        return ("  " + gap.join(padded)).rstrip()

    whole = sum(widths) + len(gap) * (len(widths) - 1)
    lines = [styled(escapes.printable(table.title), 1), "", line(head, [True] * len(head))]
    lines.append(f" {rule * (whole + 2)}" if table.spaced else f"  {rule * whole}")
    for index, (name, rows) in enumerate(groups):
        if index and lines[-1]:
            lines.append("")
        if name:
            lines.append("  " + styled(name, 3))
        for row in rows:
            lines.append(line(shown[id(row)], [cell.best for cell in row.cells]))
            if row.rule_below and row is not table.rows[-1]:
                lines.append("")
    return "\n".join([*lines, "", *(f"  {escapes.printable(note)}" for note in table.notes)]) + "\n"


def markdown_lines(table: Table) -> list[str]:
    """The table as lines of Markdown: title, rows, notes."""
    title = f"**{escapes.markdown(table.title).strip()}**"
    notes = (f"* {escapes.markdown_line(note)}" for note in table.notes)
    return [title, "", *markdown_rows(table), "", *notes]


def markdown_rows(table: Table) -> list[str]:
    """Head and rows alone, as lines of Markdown."""
    rules = "|".join("---" if i in table.words else "---:" for i in range(len(table.head)))
    lines = [_markdown_row([escapes.markdown(text) for text in table.head]), f"|{rules}|"]
    for name, rows in table.groups():
        if name:
            lines.append(f"| *{escapes.markdown(name).strip()}* |" + " |" * (len(table.head) - 1))
        lines += [_markdown_row([markdown_cell(cell) for cell in row.cells]) for row in rows]
    return lines


def _markdown_row(cells: Sequence[str]) -> str:
    return ("| " + " | ".join(cells) + " |").rstrip()


def markdown_cell(cell: TableCell) -> str:
    """One value as Markdown."""
    if cell.code and cell.text:
        return escapes.markdown_code(cell.text) + escapes.markdown(cell.mark)
    text = escapes.markdown(cell.text)
    return (f"**{text}**" if cell.best else text) + escapes.markdown(cell.mark)


def _latex(table: Table) -> str:
    caption = table.title + "".join(f". {note[:1].upper()}{note[1:]}" for note in table.notes)
    size = next((command for width, command in SIZES if _characters(table) > width), "")
    ruled = "" if table.ruled_column is None else f"{table.ruled_column + 1}"
    alignment = "".join("l" if i in table.words else "r" for i in range(len(table.head)))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escapes.latex(caption)}}}",
        *([rf"{size}\setlength{{\tabcolsep}}{{2pt}}"] if size else []),
        rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        r"\toprule",
        escapes.latex_row(" & ".join(map(escapes.latex, table.head))),
        r"\midrule" + (rf"\cmidrule(lr){{{ruled}-{ruled}}}" if ruled else ""),
    ]
    for index, (name, rows) in enumerate(table.groups()):
        if index:
            lines.append(r"\midrule")
        if name:
            lines.append(rf"\multicolumn{{{len(table.head)}}}{{l}}{{\emph{{{escapes.latex(name)}}}}} \\")
        for row in rows:
            lines.append(escapes.latex_row(" & ".join(map(_latex_cell, row.cells))))
            if row.rule_below and row is not table.rows[-1]:
                lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _characters(table: Table) -> int:
    """Width of the widest row as set, about."""
    columns = zip(*([cell.text + cell.mark for cell in row.cells] for row in table.rows), strict=True)
    first, *others = (list(map(len, column)) for column in columns)
    widths = [max(len(head), *cells) for head, cells in zip(table.head[1:], others, strict=True)]
    return max(first) + sum(widths) + 2 * len(widths)


def _latex_cell(cell: TableCell) -> str:
    text = escapes.latex(cell.text).replace(r" $\pm$ ", r"\,$\pm$\,")
    return (rf"\textbf{{{text}}}" if cell.best else text) + escapes.latex(cell.mark)


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(escapes.csv, table.head))
    writer.writerows([_csv_field(cell) for cell in row.cells] for row in table.rows)
    return buffer.getvalue()


def _csv_field(cell: TableCell) -> str:
    if cell.missing:
        return ""
    value = cell.text if cell.value is None else cell.value
    return escapes.csv(value) if isinstance(value, str) else repr(value)


def _html(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_number(i not in table.words)}>{escapes.html(text)}</th>'
        for i, text in enumerate(table.head)
    )
    bodies = []
    for name, rows in table.groups():
        heading = ""
        if name:
            span = f'<th scope="rowgroup" colspan="{len(table.head)}">{escapes.html(name)}</th>'
            heading = f'<tr class="group">{span}</tr>'
        bodies.append(f"<tbody>{heading}{''.join(_html_row(row, table.words) for row in rows)}</tbody>")
    notes = "".join(f"<li>{escapes.html(note)}</li>" for note in table.notes)
    notes = f'<ul class="notes">{notes}</ul>' if notes else ""
    filtered = " data-filter" if len(table.rows) >= _FEWEST_TO_FILTER else ""
    title = escapes.html(table.title)
    return (
        f'<div class="table"{filtered}><p class="caption">{title}</p>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">'
        f'<table aria-label="{title}"><thead><tr>{head}</tr></thead>{"".join(bodies)}</table></div>'
        f"{notes}</div>\n"
    )


def _html_row(row: TableRow, words: frozenset[int]) -> str:
    first, *rest = row.cells
    anchor = f' id="{escapes.html(row.anchor)}" tabindex="-1"' if row.anchor else ""
    cells = "".join(
        f"<td{_number(i not in words)}{_html_key(cell)}>{html_cell(cell)}</td>"
        for i, cell in enumerate(rest, 1)
    )
    return f'<tr{anchor}><th scope="row">{html_cell(first)}</th>{cells}</tr>'


def _html_key(cell: TableCell) -> str:
    """What the page's script sorts by where the text alone does not say."""
    if cell.missing:
        return " data-missing"
    return f' data-value="{cell.value!r}"' if isinstance(cell.value, int | float) else ""


def _number(number: bool) -> str:
    return ' class="number"' if number else ""


def html_cell(cell: TableCell) -> str:
    """One value as HTML."""
    text = escapes.html(cell.text)
    if cell.code:
        text = f"<code>{text}</code>"
    if cell.best:
        text = f"<strong>{text}</strong>"
    if cell.link:
        text = f'<a href="#{escapes.html(cell.link)}">{text}</a>'
    return text + escapes.html(cell.mark)
