"""Which checkpoints the package ships; imports no torch, so that listing stays quick."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.support.registry import unknown

ZOO = Path(__file__).resolve().parent.parent / "zoo"
_SEED = re.compile(r"-s[0-9]+$")


def shipped() -> dict[str, Path]:
    """Name -> folder, schemes in the catalogue's order; ``NAME`` is seed 1, ``NAME-sN`` a further one."""
    order = list(SCHEMES)
    found = {path.parent.name: path.parent for path in sorted(ZOO.glob("*/config.json"))}
    return dict(sorted(found.items(), key=lambda item: order.index(_SEED.sub("", item[0]))))


def shipped_folder(name: str) -> Path:
    """The folder of the zoo model ``name``; ``NAME-s1`` is ``NAME``.

    Raises:
        UserError: no model of that name is shipped.
    """
    folders = shipped()
    first = name.removesuffix("-s1")
    if first not in folders:
        raise unknown("zoo model", name, folders)
    return folders[first]


def first_seeds() -> list[str]:
    """Names of the models of seed 1: one a scheme."""
    return [name for name in shipped() if not _SEED.search(name)]


def read_config(folder: Path) -> dict[str, Any]:
    """A shipped checkpoint's ``config.json``."""
    data: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return data
