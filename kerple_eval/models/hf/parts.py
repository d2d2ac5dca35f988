"""Names of the parts of a GGUF model that ``llama-gguf-split`` has split: ``NAME-00001-of-00003.gguf``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kerple_eval.types import UserError

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def names_of(name: str) -> list[str]:
    """The names of all parts, of which ``name`` is one; ``name`` alone where the model is not split."""
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    count = min(int(match["count"]), 9999)
    return [f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, count + 1)]


def of(path: Path) -> tuple[Path, ...]:
    """The files of the model that ``path`` is a part of; a missing one is named."""
    files = tuple(path.with_name(name) for name in names_of(path.name))
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; the model is split into {len(files)} parts")
    return files


def first_of(names: Sequence[str]) -> str | None:
    """The first part's name where sorted ``names`` are the parts of one model; else None."""
    return names[0] if names and names_of(names[0]) == list(names) else None
