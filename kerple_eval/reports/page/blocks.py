"""What a page is made of, set as HTML or Markdown by :mod:`html` and :mod:`markdown`.

Every text here is plain: a label may hold any character, and only a setter escapes it for its format.
"""

from __future__ import annotations

from dataclasses import dataclass

from kerple_eval.reports.figures.style import Picture
from kerple_eval.reports.typeset import Table, TableCell


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

    pairs: tuple[tuple[str, TableCell], ...]


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


@dataclass(frozen=True, slots=True)
class Switch:
    """Tables of the same cells, one shown at a time; a name for each."""

    names: tuple[str, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Beside:
    """Tables, and figures beside them on a wide screen."""

    tables: tuple[Table | Switch, ...]
    figures: Figures


Block = Switch | Beside | Table | Paragraph | Warn | Code | Facts | Heading | Figures


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    anchor: str
    blocks: tuple[Block, ...]
