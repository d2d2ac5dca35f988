"""The same blocks as Markdown, for places that show no HTML; figures are PNG files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kerple_eval.reports.figures.style import compose, save
from kerple_eval.reports.page.blocks import (
    Block,
    Code,
    Facts,
    Figures,
    Heading,
    Paragraph,
    Section,
    Table,
    Value,
    Warn,
)


def render(title: str, sections: Sequence[Section], out: Path) -> tuple[str, list[Path]]:
    """The text, and the figures written beside ``out``: ``STEM-NAME.png``, ``STEM-NAME-2.png``, ..."""
    lines, written = [f"# {_safe(title)}", ""], list[Path]()
    taken: dict[str, int] = {}
    for section in sections:
        lines += [f"## {_safe(section.title)}", ""]
        for block in section.blocks:
            lines += _figures(block, out, taken, written) if isinstance(block, Figures) else _block(block)
    return "\n".join(lines).rstrip("\n") + "\n", written


def _figures(block: Figures, out: Path, taken: dict[str, int], written: list[Path]) -> list[str]:
    lines = []
    for picture in block.pictures:
        taken[block.name] = taken.get(block.name, 0) + 1
        number = f"-{taken[block.name]}" if taken[block.name] > 1 else ""
        path = out.with_name(f"{out.stem}-{block.name}{number}.png")
        save(compose([picture]), path)
        written.append(path)
        note = f" ({picture.note})" if picture.note else ""
        words = _safe(picture.words).replace("[", "\\[").replace("]", "\\]")
        lines += [f"![{words}](<{path.name}>)", "", f"*{_safe(picture.title + note)}*", ""]
    return lines


def _block(block: Block) -> list[str]:
    lines: list[str]
    match block:
        case Table():
            return _table(block)
        case Paragraph(text):
            lines = [_safe(text)]
        case Warn(text, _):
            lines = [f"**Warning:** {_safe(text)}"]
        case Code(text):
            lines = ["```", text, "```"]
        case Heading(text, _):
            lines = [f"### {_safe(text)}"]
        case Facts(pairs):
            lines = [f"* {_safe(name)}: {_value(value)}" for name, value in pairs]
        case Figures():
            raise AssertionError("figures are files, set where their folder is known")
    return [*lines, ""]


def _table(table: Table) -> list[str]:
    rules = "|".join("---" if i in table.words else "---:" for i in range(len(table.head)))
    lines = [f"**{_safe(table.title)}**", "", _bar([_safe(text) for text in table.head]), f"|{rules}|"]
    group = ""
    for row in table.rows:
        if row.group != group:
            group = row.group
            lines.append(_bar([f"*{_safe(group)}*", *[""] * (len(table.head) - 1)]))
        lines.append(_bar([_value(value) for value in row.values]))
    return [*lines, "", *(f"* {_safe(note)}" for note in table.notes), *([""] if table.notes else [])]


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _value(value: Value) -> str:
    if value.code:
        return f"`{value.text.replace('|', '&#124;')}`" if value.text else ""
    text = _safe(value.text)
    return (f"**{text}**" if value.best else text) + value.mark


def _safe(text: str) -> str:
    for mark, instead in (("&", "&amp;"), ("<", "&lt;"), ("*", "\\*"), ("|", "\\|"), ("`", "\\`")):
        text = text.replace(mark, instead)
    return text
