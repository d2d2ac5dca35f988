"""One page a reader can keep: results in words, tables and figures, how sure they are, and where every
number came from.

A section is one function and one line of ``SECTIONS``; it returns blocks (:mod:`blocks`), which are set
as one HTML file that needs nothing else, or as Markdown with its figures beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kerple_eval.reports.page import html, markdown
from kerple_eval.reports.page.blocks import Section
from kerple_eval.reports.page.gathered import Gathered, gather
from kerple_eval.reports.page.provenance import provenance
from kerple_eval.reports.page.sections import (
    answered,
    asked,
    by_context,
    compared,
    diverged,
    explained,
    gained,
    reached,
    results,
    sure,
    warnings,
)
from kerple_eval.support.files import write_output
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

#: In the order of the page.
SECTIONS: tuple[Callable[[Gathered], Section | None], ...] = (
    results,
    warnings,
    reached,
    answered,
    compared,
    explained,
    gained,
    diverged,
    sure,
    by_context,
    asked,
    provenance,
)

PAGE_FORMATS = {"html": (".html", ".htm"), "markdown": (".md", ".markdown")}


def make(
    folders: Sequence[str | Path], out: Path | None = None, style: str | None = None,
    *, against: str | None = None, gain: bool = False,
) -> list[Path]:  # fmt: skip
    """Write the page of ``folders`` to ``out``, report.html in the first of them unless given.

    ``style`` is a name of ``PAGE_FORMATS``; without it the ending of ``out`` decides. ``gain``: with the text
    that gained and lost most, which is read again. Returns the files written.
    """
    style, out = _place(folders, out, style)
    data = replace(gather(folders, against), gain=gain)
    sections = [section for make in SECTIONS if (section := make(data)) is not None]
    title = "Length extrapolation: " + ", ".join(run.folder.resolve().name for run in data.runs)
    if style == "html":
        write_output(out, html.render(title, sections).encode())
        return [out]
    text, figures = markdown.render(title, sections, out)
    write_output(out, text.encode())
    return [out, *figures]


def _place(folders: Sequence[str | Path], out: Path | None, style: str | None) -> tuple[str, Path]:
    if style is not None and style not in PAGE_FORMATS:
        raise unknown("page format", style, PAGE_FORMATS)
    if out is None:
        style = style or "html"
        return style, Path(folders[0]) / f"report{PAGE_FORMATS[style][0]}"
    meant = next((name for name, endings in PAGE_FORMATS.items() if out.suffix.lower() in endings), None)
    if meant is None or style not in (None, meant):
        wanted = (
            PAGE_FORMATS[style] if style else [ending for known in PAGE_FORMATS.values() for ending in known]
        )
        kind = f"{style} page" if style else "page"
        raise UserError(f"{out}: a {kind}'s name must end with {' or '.join(wanted)}")
    return meant, out
