"""Blocks as one self-contained HTML page: styles, script and figures inline, nothing fetched.

The page's own policy (Content-Security-Policy) forbids every request and every script but this one, by
its hash, so that a label can never become code. Without JavaScript its tables are plain tables; with it
they sort by a click on a heading and filter by words.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from kerple_eval.reports import escapes
from kerple_eval.reports.figures.style import COLORS, Picture, compose, rendered
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
from kerple_eval.reports.typeset import Table, html_cell, typeset

_STYLE = Path(__file__).with_name("page.css")
_SCRIPT = Path(__file__).with_name("page.js")
#: Greys of text and lines in figures, which take the page's own colour of text: light or dark.
_INK = re.compile(r"(?P<what>fill|stroke): #(?:000000|4d4d4d|666666)\b")


def render(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    style, script = (path.read_text(encoding="utf-8") for path in (_STYLE, _SCRIPT))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    links = "".join(
        f'<li><a href="#{escapes.html(s.anchor)}">{escapes.html(s.title)}</a></li>' for s in sections
    )
    figures = _Figures()
    body = "".join(_section(section, figures) for section in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escapes.html(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escapes.html(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#page">Skip to the page</a>\n<header><h1>{escapes.html(title)}</h1>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f'<main id="page" tabindex="-1">\n{body}</main>\n<script>{script}</script>\n</body>\n</html>\n'
    )


class _Figures:
    """Numbers the figures and switches, so that their ids are the page's own."""

    def __init__(self) -> None:
        self.count = 0
        self.switches = 0

    def switch(self, block: Switch) -> str:
        """One of the tables by a choice that needs no script."""
        self.switches += 1
        name = f"switch-{self.switches}"
        choices = "".join(
            f'<input type="radio" name="{name}" id="{name}-{i}"{" checked" if i == 1 else ""}>'
            f'<label for="{name}-{i}">{escapes.html(label)}</label>'
            for i, label in enumerate(block.names, 1)
        )
        panels = "".join(f'<div class="panel">{typeset(table, "html")}</div>' for table in block.tables)
        return f'<div class="switch" role="group" aria-label="What the table shows">{choices}{panels}</div>'

    def set(self, picture: Picture) -> str:
        self.count += 1
        name = f"figure-{self.count}"
        title, words, note = (
            escapes.html(picture.title),
            escapes.html(picture.words),
            escapes.html(picture.note),
        )
        note_html = f" <span class=note>{note}</span>" if note else ""
        return (
            f'<figure id="{name}">{inline(picture, name)}'
            f'<figcaption><strong id="{name}-title">{title}</strong>{note_html}'
            f'<details><summary>The figure in words</summary><p id="{name}-words">{words}</p></details>'
            "</figcaption></figure>\n"
        )


def inline(picture: Picture, name: str) -> str:
    """The picture as an <svg> of the page: no id twice, in the page's colour of text, at any width."""
    text = rendered(compose([picture]), "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = _INK.sub(r"\g<what>: currentColor", text).replace("xlink:href", "href")
    text = text.replace(COLORS[0].lower(), "var(--blue)")  # too dark on a dark page
    text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', lambda m: _svg(m[1], name), text, count=1)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _svg(box: str, name: str) -> str:
    return f'<svg viewBox="{box}" role="img" aria-labelledby="{name}-title" aria-describedby="{name}-words">'


def _section(section: Section, figures: _Figures) -> str:
    anchor = escapes.html(section.anchor)
    blocks = "".join(_block(block, figures) for block in section.blocks)
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n'
        f'<h2 id="{anchor}-title">{escapes.html(section.title)}</h2>\n{blocks}</section>\n'
    )


def _block(block: Block, figures: _Figures) -> str:
    match block:
        case Table():
            text = typeset(block, "html")
        case Switch():
            text = figures.switch(block)
        case Beside(tables, pictures):
            left = "".join(_block(table, figures) for table in tables)
            text = f'<div class="beside"><div>{left}</div>{_block(pictures, figures)}</div>'
        case Paragraph(words):
            text = f"<p>{escapes.html(words)}</p>"
        case Warn(words, link):
            more = f' <a href="#{escapes.html(link)}">see there</a>' if link else ""
            text = f'<p class="warn" role="note"><strong>Warning:</strong> {escapes.html(words)}{more}</p>'
        case Code(lines):
            code = "\n".join(map(escapes.html, lines.split("\n")))
            text = f'<pre tabindex="0"><code>{code}</code></pre>'
        case Heading(words, anchor):
            own = f' id="{escapes.html(anchor)}"' if anchor else ""
            text = f"<h3{own}>{escapes.html(words)}</h3>"
        case Facts(pairs):
            items = "".join(
                f"<dt>{escapes.html(name)}</dt><dd>{html_cell(value)}</dd>" for name, value in pairs
            )
            text = f"<dl>{items}</dl>"
        case Figures(_, pictures):
            text = f'<div class="figures">{"".join(map(figures.set, pictures))}</div>'
    return text + "\n"
