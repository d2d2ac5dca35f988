"""The zoo: native checkpoints shipped inside the package, ``zoo:NAME`` or ``zoo:NAME-sN``."""

from __future__ import annotations

from pathlib import Path

from kerple_eval.checkpoints.base import Checkpoint
from kerple_eval.checkpoints.native import NativeCheckpoint
from kerple_eval.checkpoints.shipped import shipped_as


class ZooCheckpoint(NativeCheckpoint):
    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return False  # reached by name only; its folders are native ones

    @classmethod
    def open(cls, place: str, options: dict[str, str]) -> Checkpoint:
        return NativeCheckpoint.open(str(shipped_as(place)), options)
