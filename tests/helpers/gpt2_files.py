"""GPT-2's two tokeniser files."""

from __future__ import annotations

import json
from pathlib import Path


def gpt2_files(folder: Path, extra: int = 0, names: tuple[str, str] = ("vocab.json", "merges.txt")) -> int:
    """256 bytes, two merges, the end of a text and ``extra`` more; returns how many."""
    symbols = [*byte_symbols(), "th", "the", *(f"<{n}>" for n in range(extra)), "<|endoftext|>"]
    (folder / names[0]).write_text(json.dumps({s: n for n, s in enumerate(symbols)}))
    (folder / names[1]).write_text("#version: 0.2\nt h\nth e\n")
    return len(symbols)


def byte_symbols() -> list[str]:
    """GPT-2's printable symbol of every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [n for n in range(256) if n not in plain]
    return [chr(n) if n in plain else chr(256 + rest.index(n)) for n in range(256)]
