"""Which checkpoints the package ships; imports no torch, so that listing stays quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kerple_eval.catalogue import SCHEMES

ZOO = Path(__file__).resolve().parent.parent / "zoo"


def shipped() -> dict[str, Path]:
    """Name -> folder, in the order of the scheme catalogue, further ones by name after that."""
    found = {path.parent.name: path.parent for path in sorted(ZOO.glob("*/config.json"))}
    order = [entry.name for entry in SCHEMES if entry.name in found]
    return {name: found[name] for name in [*order, *(n for n in found if n not in order)]}


def read_config(folder: Path) -> dict[str, Any]:
    """A shipped checkpoint's ``config.json``."""
    data: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return data
