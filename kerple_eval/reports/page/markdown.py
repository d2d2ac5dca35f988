"""The same blocks as Markdown, for places that show no HTML; figures are PNG files beside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from kerple_eval.reports import escapes
from kerple_eval.reports.figures.style import compose, save
from kerple_eval.reports.page.blocks import (
    Beside,
    Block,
    Code,
    Facts,
    Figures,
    Heading,
    Paragraph,
    Section,
    Switch,
    Warn,
)
from kerple_eval.reports.typeset import Table, markdown_cell, markdown_lines


def render(title: str, sections: Sequence[Section], out: Path) -> tuple[str, list[Path]]:
    """The text, and the figures written beside ``out``: ``STEM-NAME.png``, ``STEM-NAME-2.png``, ..."""
    lines, written = [f"# {escapes.markdown(title)}", ""], list[Path]()
    taken: dict[str, int] = {}
    for section in sections:
        lines += [f"## {escapes.markdown(section.title)}", ""]
        for block in itertools.chain.from_iterable(map(_plain, section.blocks)):
            lines += _figures(block, out, taken, written) if isinstance(block, Figures) else _block(block)
    return "\n".join(lines).rstrip("\n") + "\n", written


def _plain(block: Block) -> Iterator[Block]:
    """The block's parts one after another: Markdown has neither columns nor a switch."""
    match block:
        case Switch(_, tables):
            yield from tables
        case Beside(tables, figures):
            for table in tables:
                yield from _plain(table)
            yield figures
        case _:
            yield block


def _figures(block: Figures, out: Path, taken: dict[str, int], written: list[Path]) -> list[str]:
    lines = []
    for picture in block.pictures:
        taken[block.name] = taken.get(block.name, 0) + 1
        number = f"-{taken[block.name]}" if taken[block.name] > 1 else ""
        path = out.with_name(f"{out.stem}-{block.name}{number}.png")
        save(compose([picture]), path)
        written.append(path)
        note = f" ({picture.note})" if picture.note else ""
        words, target = escapes.markdown_alt(picture.words), escapes.markdown_target(path.name)
        lines += [f"![{words}](<{target}>)", "", f"*{escapes.markdown(picture.title + note)}*", ""]
    return lines


def _block(block: Block) -> list[str]:
    lines: list[str]
    match block:
        case Table():
            lines = markdown_lines(block)
            return [*lines, ""] if block.notes else lines
        case Paragraph(text):
            lines = [escapes.markdown_line(text)]
        case Warn(text, _):
            lines = [f"**Warning:** {escapes.markdown(text)}"]
        case Code(text):
            lines = escapes.markdown_block(text)
        case Heading(text, _):
            lines = [f"### {escapes.markdown(text)}"]
        case Facts(pairs):
            lines = [f"* {escapes.markdown(name)}: {markdown_cell(value)}" for name, value in pairs]
        case Figures() | Switch() | Beside():
            raise AssertionError("set where their parts are known")
    return [*lines, ""]
