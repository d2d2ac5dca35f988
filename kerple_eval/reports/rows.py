"""Rows of text as an aligned table for the terminal, or as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from kerple_eval.support.registry import unknown

LISTING_FORMATS = ("text", "markdown", "csv")


def check_format(style: str) -> None:
    if style not in LISTING_FORMATS:
        raise unknown("format", style, LISTING_FORMATS)


@dataclass(frozen=True, slots=True)
class Listing:
    """A titled table with notes under it; the first column is words, and the last unless it is said not to
    be; the others are numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    task: str = ""
    protocol: str = ""
    last_is_number: bool = False

    @property
    def words(self) -> frozenset[int]:
        """Columns that are words."""
        return frozenset({0} if self.last_is_number else {0, len(self.head) - 1})

    def kept(self) -> Listing:
        """Without columns that have no entry."""
        kept = [i for i in range(len(self.head)) if any(row[i] for row in self.rows)]
        return replace(
            self, head=[self.head[i] for i in kept], rows=[[row[i] for i in kept] for row in self.rows]
        )


def draw(listing: Listing, style: str) -> str:
    """As text or Markdown."""
    shown = listing.kept()
    title, head, rows, notes = shown.title, shown.head, shown.rows, shown.notes
    if style == "markdown":
        lines = [
            f"**{title}**",
            "",
            _bar(head),
            "|" + "|".join("---" if i in shown.words else "---:" for i in range(len(head))) + "|",
        ]
        lines += [_bar(row) for row in rows]
        lines += ["", *(f"* {note}" for note in notes)]
    else:
        widths = [max(map(len, column)) for column in zip_longest(head, *rows, fillvalue="")]
        lines = [
            title,
            "",
            _aligned(head, widths, shown.words),
            "  " + "-" * (sum(widths) + 2 * len(widths) - 2),
        ]
        lines += [_aligned(row, widths, shown.words) for row in rows]
        lines += ["", *(f"  {note}" for note in notes)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _bar(row: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"


def _aligned(row: Sequence[str], widths: Sequence[int], words: frozenset[int]) -> str:
    cells = [
        text.ljust(width) if i in words else text.rjust(width)
        for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  " + "  ".join(cells)


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Full precision; None is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row[column] for column in columns)
        writer.writerow(["" if v is None else repr(v) if isinstance(v, float) else str(v) for v in values])
    return buffer.getvalue()


def number(value: float | None) -> str:
    """Four significant digits or so: 3.214, 23.91, 185.2, 14039."""
    if value is None:
        return ""
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0}f}"


def between(low: float | None, high: float | None) -> str:
    """The ends of an interval of perplexity; an end beyond the largest float is ``inf`` in words."""
    return f"{number(low) or 'too large'} to {number(high) or 'too large'}"


def probability(p: float | None) -> str:
    if p is None:
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"
