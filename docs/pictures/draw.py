"""The pictures of docs/protocols.md, drawn from what each protocol itself plans: `make pictures`.

A row is a window, a column a token of the document. Pale squares are inputs that are only read; a
coloured square is a scored target, its number the context (how many tokens the model saw). The target
right of the last input is scored too: it is predicted, never read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kerple_eval.protocols.catalogue import make_protocol
from kerple_eval.types import Window

FOLDER = Path(__file__).parent
CELL, GAP, LEFT, TOP = 17, 2, 64, 22
INPUT, EDGE, INK = "#dfe3ea", "#9aa3b2", "#1d2430"
SHADES = ("#fde0c5", "#facba6", "#f8b58b", "#f59e72", "#f2855d", "#ef6a4c", "#eb4a40")

SIZES = [11, 7, 13]  # tokens of the three documents that kerple-release draws from, end to end

#: File -> its panels: protocol, tokens of the document, length L, longest length M.
PICTURES: dict[str, list[tuple[str, int, int, int]]] = {
    "full-context": [("full-context", 25, 4, 16), ("full-context", 25, 8, 16)],
    "sliding-window": [("sliding-window:stride=2", 25, 8, 8), ("sliding-window:stride=4", 25, 8, 8)],
    "last": [("last:k=3", 25, 4, 8), ("last:k=3", 25, 8, 8)],
    "aligned": [("aligned:k=3", 25, length, 8) for length in (4, 8)],
    "prefix": [("prefix", 25, length, 8) for length in (2, 4, 8)],
    "answer": [("answer", 13, 12, 12)],
    "lm-eval-rolling": [("lm-eval-rolling", 20, 8, 8)],
    "yarn": [("yarn:stride=4", 25, 8, 8)],
    "hf-guide": [("hf-guide:stride=4", 25, 8, 8)],
    "llama-cpp": [("llama-cpp", 25, 8, 8)],
    "gptq": [("gptq", 25, 8, 8)],
    "dape": [("dape:k=3", 25, 8, 8)],
    "kerple-release": [("kerple-release:split=all,samples=2,seed=1", 9, 8, 8)],
}


def windows(name: str, n: int, length: int, longest: int) -> list[Window]:
    """What the protocol plans over a document of ``n`` tokens; of ``answer``, the last three are asked."""
    protocol, _ = make_protocol(name)
    if protocol.scores_answers:
        return protocol.plan_answer(n, 3, length)
    return protocol.plan(n, length, longest)


def rows_of(name: str, n: int, length: int, longest: int) -> list[tuple[str, Window, list[int]]]:
    """For each window its label, the window and the column of every token of its document."""
    protocol, _ = make_protocol(name)
    if not protocol.draws_samples:
        plan = windows(name, n, length, longest)
        return [(f"window {i + 1}", window, list(range(n))) for i, window in enumerate(plan)]
    rows = []
    for sample in protocol.samples(SIZES, length):
        first = [sum(SIZES[: span.document]) for span in sample.spans]
        columns = [
            before + token
            for before, span in zip(first, sample.spans, strict=True)
            for token in range(span.start, span.stop)
        ]
        rows += [
            (f"sample {len(rows) + 1}", w, columns) for w in protocol.plan(len(columns), length, longest)
        ]
    return rows


def panel(name: str, n: int, length: int, longest: int, top: int) -> tuple[list[str], int, int]:
    """SVG of one panel from ``top`` on, and its width and lower end."""
    rows = rows_of(name, n, length, longest)
    columns = max(column for _, _, of in rows for column in of) + 1
    step = CELL + GAP
    out = [
        f'<text x="4" y="{top + 13}" class="h">{name}, L = {length}</text>',
    ]
    top += TOP
    for i in range(columns):
        out.append(f'<text x="{LEFT + i * step + CELL / 2:g}" y="{top + 9}" class="t">{i}</text>')
    top += 13
    for label, window, column in rows:
        out.append(f'<text x="{LEFT - 6}" y="{top + 12}" class="l">{label}</text>')
        for token in range(window.start, window.stop + 1):
            x = LEFT + column[token] * step
            scored = token >= window.first_target
            if not scored and token == window.stop:
                continue
            context = token - window.start
            shade = SHADES[min(len(SHADES) - 1, context * len(SHADES) // (length + 1))]
            out.append(
                f'<rect x="{x}" y="{top}" width="{CELL}" height="{CELL}" rx="3" '
                f'fill="{shade if scored else INPUT}"'
                + (f' stroke="{EDGE}" stroke-dasharray="2 2"/>' if token == window.stop else "/>")
            )
            if scored:
                out.append(f'<text x="{x + CELL / 2:g}" y="{top + 12}" class="c">{context}</text>')
        top += step
    return out, LEFT + columns * step + 4, top + 8


def svg(panels: list[tuple[str, int, int, int]]) -> str:
    body, width, top = [], 0, 4
    for each in panels:
        lines, right, top = panel(*each, top)
        body += lines
        width = max(width, right)
    title = "; ".join(f"{name} at L = {length}" for name, _, length, _ in panels)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" '
            f'height="{top}" role="img" aria-label="{title}">',
            f"<style>text{{font:10px system-ui,sans-serif;fill:{INK}}}.h{{font-size:12px;font-weight:600}}"
            f".t{{text-anchor:middle;font-size:8px;fill:{EDGE}}}.c{{text-anchor:middle}}"
            ".l{text-anchor:end}</style>",
            f'<rect width="{width}" height="{top}" fill="#fff"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def main(folder: Path = FOLDER) -> None:
    for name, panels in PICTURES.items():
        (folder / f"protocol-{name}.svg").write_text(svg(panels))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
