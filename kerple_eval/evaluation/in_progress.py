"""``DIR/in_progress.json``: the cell that is being computed, for the run that comes after a killed one.

The kernel's out-of-memory killer gives a process no time to record a failure, so the same command would be
killed at the same cell for ever. The file is written before a cell is computed and removed after it, however
it ends, but for a kill, of this process or another rank, and a card that is lost. A run that finds the file
left behind records its cell as failed where

* the same cell was being computed when two processes in a row ended so, or
* the control group's count of out-of-memory kills has risen since the file was written.

Otherwise it computes the cell again: one kill, anywhere, changes nothing. Cells that are computed before that
one (those that failed are tried again) do not make the file forget it: it comes back when they have ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kerple_eval.evaluation.pulse import RankLostError
from kerple_eval.models.devices import DeviceLostError
from kerple_eval.support.files import write_atomically
from kerple_eval.support.readers import read_json
from kerple_eval.support.typed_json import Count, from_json, to_json
from kerple_eval.types import CellKey, UserError

FILE = "in_progress.json"
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class KillCount:
    """Out-of-memory kills of a control group (cgroup v2), which ``group`` identifies."""

    group: str
    kills: Count


@dataclass(frozen=True)
class InProgress:
    """``deaths``: processes in a row that had ended in this cell when the file was written."""

    cell: CellKey
    deaths: Count
    memory: KillCount | None = None


class Deaths:
    """What the file says of the processes before this one; it is kept up to date for those after it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.left: InProgress | None = None
        if self.path.exists():
            try:
                self.left = from_json(InProgress, read_json(self.path), str(self.path))
            except UserError as error:
                raise UserError(f"{error}; delete the file") from None

    def reason(self) -> str | None:
        """Why the cell of the file is to be recorded as failed; None where it is to be computed."""
        if self.left is None:
            return None
        now, then = kill_count(), self.left.memory
        if now is not None and then is not None and now.group == then.group and now.kills > then.kills:
            return "the kernel's out-of-memory killer ended the process that computed this cell"
        if self.left.deaths > 0:
            return "two processes in a row ended while they computed this cell"
        return None

    @contextmanager
    def computing(self, key: CellKey) -> Iterator[None]:
        """Around the computation of a cell; the file stays where another rank or the card was lost in it."""
        again = self.left is not None and self.left.cell == key
        self._write(InProgress(key, int(again), kill_count()))
        try:
            yield
        except (RankLostError, DeviceLostError):
            raise
        except BaseException:
            self._ended(again)
            raise
        self._ended(again)

    def _ended(self, again: bool) -> None:
        if again or self.left is None:
            self.forget()
        else:
            self._write(self.left)

    def _write(self, content: InProgress) -> None:
        write_atomically(self.path, json.dumps(to_json(content)).encode(), durable=False)

    def forget(self) -> None:
        """Nothing is in progress any more."""
        self.path.unlink(missing_ok=True)
        self.left = None


def kill_count() -> KillCount | None:
    """That of this process's control group; None where the system keeps none."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
        own = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
        events = CGROUPS / own / "memory.events"
        counts = dict(line.split() for line in events.read_text(encoding="utf-8").splitlines())
        return KillCount(f"{events} {events.stat().st_ino}", int(counts["oom_kill"]))
    except (OSError, StopIteration, KeyError, ValueError):
        return None
