"""What a page is made of, said once and set as HTML or Markdown (:mod:`html`, :mod:`markdown`).

Every text here is plain: labels may hold anything, and only a setter knows what its format must escape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kerple_eval.reports.figures.style import Picture
from kerple_eval.reports.rows import Listing
from kerple_eval.reports.typeset import Sheet


@dataclass(frozen=True, slots=True)
class Value:
    """One entry of a table or list; ``link`` is the anchor of what it came from."""

    text: str
    link: str = ""
    best: bool = False
    mark: str = ""
    code: bool = False  # a hash, a file name, a command
    missing: bool = False  # sorted last, whichever way


@dataclass(frozen=True, slots=True)
class Row:
    """``values[0]`` names the row; rows of one ``group`` stand together under it."""

    values: tuple[Value, ...]
    anchor: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    words: frozenset[int] = frozenset({0})  # columns that are words rather than numbers


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Warn:
    """What a reader must know before believing a number."""

    text: str
    link: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Name and value, line by line."""

    pairs: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class Heading:
    """Within a section."""

    text: str
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """Pictures side by side where there is room; ``name`` begins the names of their files."""

    name: str
    pictures: tuple[Picture, ...]


Block = Table | Paragraph | Warn | Code | Facts | Heading | Figures


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    anchor: str
    blocks: tuple[Block, ...]


def of_sheet(sheet: Sheet, links: Sequence[Sequence[str]] = ()) -> Table:
    """A table as it is printed; ``links[row][column]`` are anchors of its last columns, "" for none."""
    rows = []
    for index, line in enumerate(sheet.lines):
        own = list(links[index]) if links else []
        own = [""] * (len(line.items) - len(own)) + own
        values = [
            Value(item.text, link, item.best, item.mark, missing=item.text in ("-", "failed"))
            for item, link in zip(line.items, own, strict=True)
        ]
        rows.append(Row((Value(line.label), *values), group=line.group))
    return Table(sheet.title, (sheet.corner, *sheet.head), tuple(rows), sheet.notes)


def of_listing(listing: Listing, links: dict[tuple[str, int], str]) -> Table:
    """Rows of text; measured numbers link to ``links[model, length]``."""
    shown = listing.kept()
    rows = []
    for row in shown.rows:
        length = int(row[shown.head.index("length")]) if "length" in shown.head else 0
        link = links.get((row[0].removesuffix("†"), length), "")
        own = dict.fromkeys(("nll", "ppl", "bits/byte"), link)
        rows.append(
            Row(
                tuple(
                    Value(text, own.get(head, "") if text else "", missing=not text)
                    for head, text in zip(shown.head, row, strict=True)
                )
            )
        )
    return Table(shown.title, tuple(shown.head), tuple(rows), tuple(shown.notes), shown.words)
