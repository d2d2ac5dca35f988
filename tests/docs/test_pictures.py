"""Pictures of the documentation: small, and those of the protocols are what the protocols plan today."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from kerple_eval.protocols.catalogue import PROTOCOLS

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = DOCS / "pictures"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", PICTURES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_protocols_are_drawn_as_they_plan(tmp_path: Path) -> None:
    script("draw").main(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_text() == (PICTURES / path.name).read_text(), f"{path.name}: run `make pictures`"
    assert {p.name for p in tmp_path.iterdir()} == {f"protocol-{name}.svg" for name in PROTOCOLS}


def test_a_picture_shows_every_context_of_a_hand_made_plan() -> None:
    """aligned:k=3 at L = 4 and M = 8 over 25 tokens: by its definition, targets e-2..e at e = 8, 16, 24."""
    text = script("draw").svg([("aligned:k=3", 25, 4, 8)])
    squares = re.findall(r'<text x="([\d.]+)" y="\d+" class="c">(\d+)</text>', text)
    columns = {f"{64 + token * 19 + 8.5:g}": token for token in range(25)}
    assert [(columns[x], int(context)) for x, context in squares] == [
        (e - 2 + i, 2 + i) for e in (8, 16, 24) for i in range(3)
    ]


def test_pictures_are_small() -> None:
    sizes = {p: p.stat().st_size for p in DOCS.rglob("*") if p.suffix in (".png", ".svg", ".jpg", ".gif")}
    assert all(p.suffix in (".png", ".svg") for p in sizes)
    assert max(sizes.values()) <= 60_000
    assert sum(sizes.values()) <= 500_000


def test_every_picture_is_shown_somewhere() -> None:
    shown = {
        name
        for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
        for name in re.findall(r"pictures/([\w.-]+\.(?:png|svg))", page.read_text())
    }
    assert shown == {p.name for p in PICTURES.iterdir() if p.suffix in (".png", ".svg")}
