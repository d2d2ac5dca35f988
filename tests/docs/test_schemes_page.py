"""docs/schemes.md: its table is the catalogue's, and the spellings it shows are read."""

from __future__ import annotations

import re
from pathlib import Path

from kerple_eval.cli.listing import lines
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.schemes.spelling import parse_scheme

PAGE = (Path(__file__).parents[2] / "docs" / "schemes.md").read_text()


def test_the_table_is_the_catalogue() -> None:
    """Made by ``kerple-eval list schemes --format markdown``."""
    assert PAGE.endswith("\n".join(lines("schemes", "markdown")) + "\n")


def test_the_schemes_it_shows_are_read() -> None:
    shown = [text.strip('"') for text in re.findall(r'--scheme ("[^"]+"|\S+)', PAGE)]
    named = [text for text in shown if not text.startswith("NAME")]
    assert {"kerple-log,window=32", "rope,ssmax", "layers: (rope,window=32)*3 (nope)"} <= set(named)
    for text in named:
        parse_scheme(text.rstrip("`)"))


def test_the_models_it_shows_open() -> None:
    shown = [text.strip("`") for text in re.findall(r"zoo:\S+", PAGE)]
    assert [open_model(parse_model(text)).description.scheme for text in shown][:3] == [
        "kerple-log,window=512",
        "rope,rerope=256,log-n=512",
        "rope,self-extend=256,group=8",
    ]
