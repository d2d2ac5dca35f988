"""A temporary folder that ends with its object, with the process, or after a kill with the next one."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from kerple_eval.support.files import LOCK, take_lock


class ScratchFolder:
    """An empty folder ``path`` below the system's temporary one, named ``kerple-eval-KIND-...``.

    While its process lives it is locked; making one removes those of its kind that killed processes left.
    """

    def __init__(self, kind: str) -> None:
        prefix = f"kerple-eval-{kind}-"
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK}"):
            with suppress(OSError), left.open("rb") as file:
                if take_lock(file):
                    shutil.rmtree(left.parent, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        self._lock = (self.path / f"{LOCK}.new").open("wb")
        with suppress(OSError):  # where the file system has no locks
            take_lock(self._lock)
        (self.path / f"{LOCK}.new").rename(self.path / LOCK)
