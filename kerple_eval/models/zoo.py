"""The zoo, ``zoo:NAME`` and ``zoo:NAME-sN``: which checkpoints there are and their folders. No torch.

The package ships one seed per scheme. Further seeds stand in the clone only (``results/zoo/models``), so that
the wheel stays small.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
ZOO = _PACKAGE / "zoo"
FURTHER = _PACKAGE.parent / "results" / "zoo" / "models"
#: Schemes of which seeds 2 and 3 were trained too.
SEEDED = ("kerple-log", "alibi", "rope", "t5")
_SEED = re.compile(r"-s[0-9]+$")


def shipped() -> dict[str, Path]:
    """Name -> folder of the models at hand, schemes in the catalogue's order; ``NAME`` is seed 1."""
    order = list(SCHEMES)
    found = {path.parent.name: path.parent for root in (ZOO, FURTHER) for path in root.glob("*/config.json")}
    return dict(sorted(found.items(), key=lambda item: (order.index(_SEED.sub("", item[0])), item[0])))


def shipped_folder(name: str) -> Path:
    """The folder of the zoo model ``name``; ``NAME-s1`` is ``NAME``.

    Raises:
        UserError: an unknown name, or a further seed where only the package is installed.
    """
    folders = shipped()
    first = name.removesuffix("-s1")
    if first in folders:
        return folders[first]
    if first in (f"{scheme}-s{seed}" for scheme in SEEDED for seed in (2, 3)):
        raise UserError(
            f"zoo:{name} is not in the installed package, which holds one seed per scheme; run from a clone "
            f"of the repository, or name a copy of its folder: native:results/zoo/models/{name}"
        )
    raise unknown("zoo model", name, folders)


def first_seeds() -> list[str]:
    """Names of the models of seed 1: one a scheme."""
    return [name for name in shipped() if not _SEED.search(name)]


def read_config(folder: Path) -> dict[str, Any]:
    """A shipped checkpoint's ``config.json``."""
    data: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return data
